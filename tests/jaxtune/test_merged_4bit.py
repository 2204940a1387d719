"""4-bit checkpoints: bitsandbytes and transformers read what we wrote, and so do we."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

pytest.importorskip("bitsandbytes")

import bitsandbytes

from convert import CheckpointError, open_checkpoint, quantization_of, quantized_infos
from jaxtune import FastLanguageModel, merged_4bit
from jaxtune.adapters.modules import linear_places
from jaxtune.language_model import LanguageModel
from jaxtune.models import leaves
from pallas_kernels import NF4
from pallas_kernels.nf4 import from_pairs, layer_matrix
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_base
from tests.oracles import make_oracle, random_rows
from tests.quantized_models import (
    LEFT_DENSE,
    dequantized,
    load,
    save_4bit,
    save_dense,
)
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity
ROWS = random_rows((2, 9))
ADAPTED = [f"model.layers.1.{path}.weight" for path in ("self_attn.q_proj", "mlp.down_proj")]
ALL = 14
NESTED = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


# Its plain torch code asks for torch.compile, which would cost seconds a shape.
eager = torch.compiler.set_stance("force_eager")
quantize_4bit = eager(bitsandbytes.functional.quantize_4bit)
dequantize_4bit = eager(bitsandbytes.functional.dequantize_4bit)


matrix = jax.jit(lambda stack, layer: layer_matrix(stack, layer, jnp.float32, "auto"))


def adapted(model: LanguageModel) -> LanguageModel:
    """A random adapter on two projections of the second layer."""
    return FastLanguageModel.get_peft_model(
        model,
        r=2,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[1],
        init_lora_weights=False,
    )


def read(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names}


def parts_of(tensors: dict[str, np.ndarray], weight: str) -> dict[str, Any]:
    """A weight's parts, as bitsandbytes' class takes them."""
    return {
        name.removeprefix(f"{weight}."): torch.tensor(array)
        for name, array in tensors.items()
        if name.startswith(f"{weight}.")
    }


def in_bitsandbytes(tensors: dict[str, np.ndarray], weight: str) -> tuple[torch.Tensor, Any]:
    state = bitsandbytes.functional.QuantState.from_dict(
        parts_of(tensors, weight), device=torch.device("cpu")
    )
    return torch.tensor(tensors[weight]), state


def stacks(model: LanguageModel) -> dict[str, tuple[NF4, int]]:
    """{tensor's name: its stack and layer}, of a model without dense projections."""
    return {
        f"{name}.weight": (place.module.weight.get_value(), layer)
        for place in linear_places(model)
        for layer, name in enumerate(place.names)
    }


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a weight was quantised, merged or read")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("merged-4bit") / "dense", layers=2)


@pytest.fixture(scope="module")
def written(dense: Path) -> tuple[LanguageModel, Path]:
    """Ours, quantised while it was loaded, with an adapter in part; and its 4-bit folder."""
    model = adapted(load(dense, dtype="bfloat16"))
    model.save_pretrained_merged(dense.parent / "written", save_method="merged_4bit")
    return model, dense.parent / "written"


@pytest.fixture(scope="module")
def float32(dense: Path) -> LanguageModel:
    return adapted(load(dense))


@pytest.fixture(scope="module")
def mixed(dense: Path) -> Path:
    """A folder of bitsandbytes that left three projections dense."""
    skipped = ["lm_head", *LEFT_DENSE[:2], "model.layers.0.mlp.up_proj"]
    options = {**NESTED, "llm_int8_skip_modules": skipped}
    return save_4bit(dense, dense.parent / "mixed", dtype=torch.bfloat16, **options)


def test_bitsandbytes_reads_the_parts_that_the_model_holds(
    written: tuple[LanguageModel, Path],
) -> None:
    model, folder = written
    tensors, ours = read(folder), stacks(model)
    assert len(ours) == ALL
    for name in ours.keys() - {*ADAPTED}:
        stack, layer = ours[name]
        codes, state = in_bitsandbytes(tensors, name)
        assert (state.quant_type, state.blocksize, state.dtype) == ("nf4", 64, torch.bfloat16)
        assert tuple(state.shape) == stack.matrix
        assert (state.nested, state.state2.blocksize) == (True, 256)
        assert codes.shape == (stack.codes.shape[1], 1)
        pairs = jnp.asarray(codes.numpy().reshape(-1))
        np.testing.assert_array_equal(from_pairs(pairs), stack.codes[layer], name)
        nested = stack.nested
        assert nested is not None
        for theirs, held in (
            (state.absmax, stack.absmax[layer]),
            (state.code, stack.table),
            (state.state2.absmax, nested.absmax[layer]),
            (state.state2.code, nested.table),
            (state.offset, nested.offset[layer]),
        ):
            np.testing.assert_array_equal(theirs.numpy(), held, name)
        value = dequantize_4bit(codes, state).float().numpy()
        np.testing.assert_array_equal(value, matrix(stack, layer), name)


def test_bitsandbytes_quantises_the_merged_weights_to_the_same_codes(
    written: tuple[LanguageModel, Path], tmp_path: Path
) -> None:
    model, folder = written
    model.save_pretrained_merged(tmp_path / "16bit")
    tensors, merged = read(folder), read(tmp_path / "16bit")
    for name in ADAPTED:
        weight = torch.tensor(merged[name].astype(np.float32)).bfloat16()
        codes, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        np.testing.assert_array_equal(tensors[name], codes.numpy())
        ours = dequantize_4bit(*in_bitsandbytes(tensors, name)).float().numpy()
        theirs = dequantize_4bit(codes, state).float().numpy()
        assert relative_error(ours, theirs) <= tolerance("bfloat16", "double_quantized")
        stack, layer = stacks(model)[name]
        assert np.any(ours != matrix(stack, layer))
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        np.testing.assert_array_equal(tensors[name], merged[name])


def test_config_json_says_how(written: tuple[LanguageModel, Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(written[1])
    ours = transformers.BitsAndBytesConfig(**config.quantization_config)
    assert ours.load_in_4bit
    assert (ours.bnb_4bit_quant_type, ours.bnb_4bit_use_double_quant) == ("nf4", True)
    assert (ours.bnb_4bit_compute_dtype, config.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (ours.llm_int8_skip_modules, ours.bnb_4bit_quant_storage) == (["lm_head"], torch.uint8)


@eager
def transformers_logits(folder: Path, dtype: torch.dtype) -> np.ndarray:
    """Those of the 4-bit model itself, all of it computed in `dtype`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    found = 0
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.compute_dtype = dtype
            # That path of some CPUs wants sizes that are multiples of 32.
            module.support_avx512bf16_for_cpu = False
            found += 1
    assert found == ALL
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ROWS)).logits.float().numpy()


def test_transformers_computes_our_logits(float32: LanguageModel, tmp_path: Path) -> None:
    """From values that were float32: its product dequantises to the dtype that it computes in."""
    float32.save_pretrained_merged(tmp_path / "out", save_method="merged_4bit")
    actual = np.asarray(load(tmp_path / "out")(ROWS.astype(np.int32)))
    expected = transformers_logits(tmp_path / "out", torch.float32)
    assert relative_error(actual, expected) <= tolerance("float32", "logits")


def test_logits_are_those_of_bitsandbytes_values_in_float64(
    written: tuple[LanguageModel, Path],
) -> None:
    actual = np.asarray(load(written[1])(ROWS.astype(np.int32)))
    with torch.no_grad():
        theirs = eager(dequantized)(written[1]).double()(input_ids=torch.tensor(ROWS))
    assert relative_error(actual, theirs.logits.numpy()) <= tolerance("float32", "logits")


def test_our_loader_takes_the_folder_as_it_is(
    written: tuple[LanguageModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = written
    monkeypatch.setattr(leaves, "quantize_nf4", refuse)
    monkeypatch.setattr(merged_4bit, "quantize_nf4", refuse)
    again = load(folder, dtype="bfloat16")
    before, after = stacks(model), stacks(again)
    for name in before.keys() - {*ADAPTED}:
        (ours, layer), (theirs, _) = before[name], after[name]
        np.testing.assert_array_equal(ours.codes[layer], theirs.codes[layer])
        np.testing.assert_array_equal(ours.absmax[layer], theirs.absmax[layer])
    again.save_pretrained_merged(tmp_path / "again", save_method="forced_merged_4bit")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    config = "config.json"
    assert (tmp_path / "again" / config).read_text() == (folder / config).read_text()


@pytest.mark.parametrize("in_4bit", [True, False], ids=["loaded-4bit", "loaded-dense"])
def test_weights_of_a_4bit_base_without_an_adapter_keep_their_bytes(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_4bit: bool
) -> None:
    model = adapted(load(mixed, load_in_4bit=in_4bit))
    model.save_pretrained_merged(tmp_path / "out", save_method="merged_4bit_forced")
    said = "of 11 projections 10 keep their 4 bits as they were loaded, and 1 are quantised"
    assert said in "".join(capsys.readouterr())
    ours, theirs = read(tmp_path / "out"), read(mixed)
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if ours[name].tobytes() != theirs[name].tobytes()}
    down = "model.layers.1.mlp.down_proj.weight"
    assert {down, f"{down}.absmax", "model.layers.1.self_attn.q_proj.weight"} <= changed
    assert all(name.startswith((*ADAPTED,)) for name in changed)
    quantized = json.loads((mixed / "config.json").read_text())["quantization_config"]
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written == {**quantized, "bnb_4bit_compute_dtype": "bfloat16"}


@pytest.mark.slow
def test_an_adapter_over_fp4_is_refused_and_fp4_alone_is_kept(dense: Path, tmp_path: Path) -> None:
    base = save_4bit(dense, tmp_path / "fp4", dtype=torch.bfloat16, bnb_4bit_quant_type="fp4")
    model = load(base)
    model.save_pretrained_merged(tmp_path / "out", save_method="merged_4bit")
    ours, theirs = read(tmp_path / "out"), read(base)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert quantization_of(config).quant_type == "fp4"
    with pytest.raises(ValueError, match=r"of the base is fp4\. Pass save_method='merged_16bit'"):
        adapted(model).save_pretrained_merged(tmp_path / "no", save_method="merged_4bit")
    assert not (tmp_path / "no").exists()


def test_without_an_adapter_16_bits_are_those_of_bitsandbytes(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(mixed).save_pretrained_merged(tmp_path / "out")
    assert "its dequantised ones are merged" in "".join(capsys.readouterr())
    expected = eager(dequantized)(mixed).state_dict()
    ours = read(tmp_path / "out")
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        assert array.dtype == jnp.bfloat16
        wanted = expected[name].bfloat16().view(torch.int16).numpy()
        np.testing.assert_array_equal(array.view(np.int16), wanted, name)


def test_a_diverged_weight_is_named_and_nothing_is_written(
    float32: LanguageModel, tmp_path: Path
) -> None:
    places = {place.in_layer: place for place in linear_places(float32)}
    lora_b = places["mlp.down_proj"].module.lora_B
    held = lora_b.get_value()
    lora_b.set_value(held.at[1, 0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"`model.layers.1.mlp.down_proj.weight` holds NaN"):
        float32.save_pretrained_merged(tmp_path / "no", save_method="merged_4bit")
    lora_b.set_value(held)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_a_weight_is_merged(
    written: tuple[LanguageModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    monkeypatch.setattr(merged_4bit, "quantize_nf4", refuse)
    with pytest.raises(CheckpointError, match="have room"):
        written[0].save_pretrained_merged(tmp_path / "no", save_method="merged_4bit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_vision_part_stays_what_it_is(tmp_path: Path) -> None:
    """Dense beside a 16-bit text part; of a 4-bit folder its 4 bits, or their values."""
    variant = VARIANTS[BY_NAME["gemma3-multimodal"]]
    base = make_oracle(variant, tmp_path / "oracle", initializer_range=0.3).folder
    load_base(base).save_pretrained_merged(tmp_path / "out", save_method="merged_4bit")
    tensors, originals = read(tmp_path / "out"), read(base)
    vision = [name for name in originals if name.startswith(("vision_tower", "multi_modal"))]
    assert vision
    for name in vision:
        np.testing.assert_array_equal(tensors[name], originals[name].astype(jnp.bfloat16), name)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        infos = quantized_infos(checkpoint)
    assert len(infos) == 3 * 7
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    kinds = {
        name: type(module)
        for name, module in theirs.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    small = {name for name, kind in kinds.items() if kind is bitsandbytes.nn.Linear4bit}
    assert len(small) == len(infos) < len(kinds)
    assert all(".language_model.layers." in name for name in small)

    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, **NESTED)
    transformers.AutoModelForImageTextToText.from_pretrained(
        base, quantization_config=settings, dtype=torch.bfloat16, device_map="cpu"
    ).save_pretrained(tmp_path / "4bit")
    held = read(tmp_path / "4bit")
    quantized = [name for name in held if "vision" in name and name.endswith(".absmax")]
    assert quantized
    model = load_base(tmp_path / "4bit")
    model.save_pretrained_merged(tmp_path / "again", save_method="merged_4bit")
    again = read(tmp_path / "again")
    assert again.keys() == held.keys()
    assert all(again[name].tobytes() == array.tobytes() for name, array in held.items())
    model.save_pretrained_merged(tmp_path / "16bit")
    dense = read(tmp_path / "16bit")
    for part in quantized:
        name = part.removesuffix(".absmax")
        codes, state = in_bitsandbytes(held, name)
        # In one row: with rows as short as these its CPU kernel takes wrong scales.
        state.shape = torch.Size((1, state.shape.numel()))
        value = dequantize_4bit(codes, state).float().numpy().reshape(dense[name].shape)
        np.testing.assert_array_equal(dense[name].astype(np.float32), value, name)
