"""Merged models in 4 bits, written without JAX: what bitsandbytes makes of the merged weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from convert.__main__ import main
from convert.checkpoint import open_checkpoint
from convert.errors import CheckpointError
from convert.merged_4bit import quantization_for, text_root
from convert.quantized import part_names, quantized_infos, read_quantized
from tests.convert.conftest import adapt
from tests.convert.test_merged_four_bits import save_base

bitsandbytes = pytest.importorskip("bitsandbytes")
NF4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
TARGETS = ["q_proj", "down_proj"]


def loaded(folder: Path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, device_map="cpu", **options
    )


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def values(module) -> torch.Tensor:
    return bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense base, the same in 4 bits, and an adapter of each."""
    folder = tmp_path_factory.mktemp("merged-4bit")
    save_base(folder, torch.bfloat16, **NF4)
    for base in ("dense", "base"):
        adapt(folder / base, folder / f"lora-{base}", target_modules=TARGETS)
    return folder


@pytest.mark.parity
@pytest.mark.parametrize("source", ["lora-dense", "dense"])
def test_of_a_dense_base_or_model_it_is_what_transformers_quantises(tmp_path, folder, source):
    assert run("merged-4bit", folder / source, tmp_path / "out") == 0
    dense = folder / source
    if source == "lora-dense":
        dense = tmp_path / "merged"
        assert run("merged", folder / source, dense) == 0
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, **NF4)
    wanted, got = loaded(dense, quantization_config=settings), loaded(tmp_path / "out")
    found = 0
    for (name, theirs), (_, ours) in zip(wanted.named_modules(), got.named_modules(), strict=True):
        assert type(theirs) is type(ours), name
        if isinstance(theirs, bitsandbytes.nn.Linear4bit):
            assert torch.equal(theirs.weight.data, ours.weight.data), name
            # The CPU kernel of their scales misses the nearest code now and then.
            torch.testing.assert_close(values(theirs), values(ours), rtol=0.02, atol=0)
            found += 1
        elif hasattr(theirs, "weight"):
            assert torch.equal(theirs.weight, ours.weight), name
    assert found == 14


@pytest.mark.parity
def test_of_a_4_bit_base_only_what_the_adapter_changes_is_quantised(tmp_path, folder):
    assert run("merged-4bit", folder / "lora-base", tmp_path / "out") == 0
    assert run("merged", folder / "lora-base", tmp_path / "merged") == 0
    with (
        open_checkpoint(folder / "base") as base,
        open_checkpoint(tmp_path / "out") as out,
        open_checkpoint(tmp_path / "merged") as merged,
    ):
        before, after = quantized_infos(base), quantized_infos(out)
        assert before.keys() == after.keys()
        for name, info in after.items():
            same = [np.array_equal(base.read(part), out.read(part)) for part in part_names(info)]
            assert all(same) == (name.split(".")[-2] not in TARGETS), name
            if not all(same):
                weight = torch.tensor(merged.read(name).astype(np.float32)).bfloat16()
                codes, _ = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
                got = read_quantized(out, info).codes
                np.testing.assert_array_equal(got, codes.numpy().reshape(-1))
        rest = set(out.names) - {part for info in after.values() for part in part_names(info)}
        for name in rest:
            np.testing.assert_array_equal(base.read(name), out.read(name), name)
    loaded(tmp_path / "out")
    theirs = json.loads((folder / "base" / "config.json").read_text())["quantization_config"]
    ours = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert ours == theirs | {"llm_int8_skip_modules": ["lm_head"]} | {
        "bnb_4bit_compute_dtype": "bfloat16"
    }


def test_an_fp4_weight_with_an_adapter_is_refused(tmp_path, folder, capsys):
    base = save_base(tmp_path, torch.bfloat16, bnb_4bit_quant_type="fp4")
    command = ("merged-4bit", folder / "lora-base", tmp_path / "out", "--base", base)
    assert run(*command) == 2
    assert "got fp4 of 'model.layers.0." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("root", "others", "skipped"),
    [
        ("model.", ["lm_head.weight"], ["lm_head"]),
        (
            "language_model.model.",
            ["language_model.lm_head.weight", "vision_tower.layers.0.q_proj.weight"],
            ["lm_head", "vision_tower", "model.vision_tower"],
        ),
        (
            "model.language_model.",
            ["model.vision_tower.layers.0.q_proj.weight", "model.projector.weight"],
            ["lm_head", "model.projector", "projector", "model.vision_tower", "vision_tower"],
        ),
    ],
)
def test_what_is_not_the_text_model_is_skipped(root, others, skipped):
    names = [f"{root}embed_tokens.weight", f"{root}layers.0.mlp.up_proj.weight", *others]
    assert text_root(names) == root
    assert sorted(quantization_for({}, names).skip_modules) == sorted(skipped)


def test_a_model_whose_layers_are_not_found_is_refused():
    with pytest.raises(CheckpointError, match=r"one embed_tokens\.weight; got 0 of that name"):
        text_root(["transformer.h.0.attn.c_attn.weight"])


@pytest.mark.parity
def test_vision_stays_dense(tmp_path, bases):
    assert run("merged-4bit", bases["gemma3"], tmp_path / "out") == 0
    with open_checkpoint(tmp_path / "out") as out, open_checkpoint(bases["gemma3"]) as base:
        infos = quantized_infos(out)
        assert len(infos) == 14
        assert all("language_model" in name and ".layers." in name for name in infos)
        assert set(base.names) <= set(out.names)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    kind = getattr(transformers, config.architectures[0])
    model, found = kind.from_pretrained(
        tmp_path / "out", device_map="cpu", output_loading_info=True
    )
    assert not found["missing_keys"], found
    assert not found["unexpected_keys"], found
    kinds = {
        name: isinstance(module, bitsandbytes.nn.Linear4bit)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert sum(kinds.values()) == 14
    assert not any(four for name, four in kinds.items() if "vision" in name or "head" in name)
