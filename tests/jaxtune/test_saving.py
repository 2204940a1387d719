"""Merged and fully tuned models as transformers reads them: each tensor, and the logits."""

import functools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file

from convert import open_checkpoint
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import LanguageModel
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle, random_rows
from tests.words import word_tokenizer

pytestmark = pytest.mark.parity
ROWS = random_rows((2, 9))
FAMILIES = [
    "llama-biases-linear-rope",
    "llama-tied-llama3-rope",
    "mistral-windowed-wide-heads",
    "gemma-one-kv-head",
    "gemma2-even-no-caps",
    "gemma3-tail-two-ropes",
    "gemma3-multimodal",
]


@functools.cache
def oracle_of(variant: str, folder: Path) -> Oracle:
    return make_oracle(VARIANTS[BY_NAME[variant]], folder / variant, initializer_range=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saving")


def read(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names}


def merged_by_torch(oracle: Oracle) -> dict[str, np.ndarray]:
    """float64(W + s B A) of every tensor, under the module's names, by peft's own merge."""
    merged = oracle.model.get_base_model()
    names = {}
    for name, parameter in merged.named_parameters():
        if "lora_" not in name:
            names[name.replace(".base_layer", "")] = parameter.detach().numpy().copy()
    for name, module in merged.named_modules():
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").detach().double().numpy()
            names[f"{name}.weight"] = names[f"{name}.weight"] + delta
    return names


def ulps_apart(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of `actual`'s 16 bits from `exact`, rounded to them."""
    kind = torch.bfloat16 if actual.dtype == ml_dtypes.bfloat16 else torch.float16
    rounded = torch.tensor(exact).to(kind).view(torch.int16).numpy().astype(np.int64)
    held = actual.view(np.int16).astype(np.int64)
    # Both zeros are one number.
    return np.where((actual == 0) & (exact == 0), 0, np.abs(held - rounded))


@pytest.mark.parametrize("variant", FAMILIES)
def test_merged_tensors_are_rounded_once_and_transformers_agrees(
    variant: str, folder: Path, tmp_path: Path
) -> None:
    oracle = oracle_of(variant, folder)
    ours = load_adapted(oracle.adapter_folder)
    out = tmp_path / "merged"
    ours.save_pretrained_merged(out, word_tokenizer(), "merged_16bit", max_shard_size="20KB")
    written, exact = read(out), merged_by_torch(oracle)
    file_names = set(read(oracle.folder))
    assert set(written) == file_names  # the folder's own names, vision part and tie included
    moved = total = 0
    for name, tensor in exact.items():
        file = name.replace("model.language_model.", "language_model.model.")
        file = file.replace("model.vision_tower.", "vision_tower.vision_model.")
        file = file.replace("model.multi_modal_projector.", "multi_modal_projector.")
        file = next(n for n in (file, file.replace(".vision_model.", ".")) if n in written)
        assert written[file].dtype == ml_dtypes.bfloat16
        apart = ulps_apart(written[file], tensor)
        assert apart.max() <= 1, name
        moved, total = moved + int((apart > 0).sum()), total + apart.size
    assert moved <= 1e-3 * total
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    compare_with_transformers(out)
    assert transformers.AutoTokenizer.from_pretrained(out)("w1 w2")["input_ids"] == [1, 5, 6]


def compare_with_transformers(folder: Path) -> np.ndarray:
    """Logits of a written folder in float32, transformers' and ours."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ROWS)).logits.numpy()
    actual = np.asarray(load_base(folder)(ROWS.astype(np.int32)))
    assert np.abs(actual - expected).max() <= 2e-4
    return actual


def test_a_merge_keeps_the_adapters_effect(folder: Path, tmp_path: Path) -> None:
    """In float32, where rounding hides nothing: the merged model is the adapted one."""
    ours = load_adapted(oracle_of("llama-tied-llama3-rope", folder).adapter_folder)
    from jaxtune.saving import save_merged

    save_merged(ours, tmp_path / "merged", dtype=np.dtype(np.float32))
    merged = load_base(tmp_path / "merged")
    rows = ROWS.astype(np.int32)
    np.testing.assert_allclose(merged(rows), ours(rows), atol=2e-4)
    assert np.abs(np.asarray(ours(rows, adapters=False)) - np.asarray(merged(rows))).max() > 0.1


def randomised(model: LanguageModel) -> LanguageModel:
    draw = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        held = leaf.get_value()
        leaf.set_value(held + 0.1 * draw.normal(size=held.shape).astype(np.float32))
    return model


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head", "norm"]])
def test_whole_modules_are_merged_and_a_tie_stays(
    saved: list[str], folder: Path, tmp_path: Path
) -> None:
    base = load_base(oracle_of("llama-tied-llama3-rope", folder).folder)
    ours = randomised(FastLanguageModel.get_peft_model(base, r=2, modules_to_save=saved))
    ours.save_pretrained_merged(tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in read(tmp_path / "merged")
    compare_with_transformers(tmp_path / "merged")
    embedding = read(tmp_path / "merged")["model.embed_tokens.weight"].astype(np.float32)
    trained = np.asarray(ours.model.embed_tokens.trained_weight[...])
    np.testing.assert_allclose(embedding, trained, rtol=2**-8)


@pytest.mark.parametrize("variant", ["llama-tied-llama3-rope", "gemma3-multimodal"])
def test_a_head_that_left_its_tie_is_written(variant: str, folder: Path, tmp_path: Path) -> None:
    """peft's default for a tied model: embedding and head trained apart."""
    import peft

    base = oracle_of(variant, folder).folder
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with pytest.warns(UserWarning, match="tie"):
        theirs = peft.get_peft_model(
            model,
            peft.LoraConfig(
                r=2,
                target_modules=r".*layers\.\d+\.mlp\.up_proj",
                modules_to_save=["lm_head"],
                task_type="CAUSAL_LM",
            ),
        )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.peft_config["default"].base_model_name_or_path = str(base)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapted(tmp_path / "theirs")
    ours.save_pretrained_merged(tmp_path / "merged")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "merged")
    assert not config.tie_word_embeddings
    compare_with_transformers(tmp_path / "merged")
    written = read(tmp_path / "merged")
    prefix = "language_model." if variant == "gemma3-multimodal" else ""
    head = written[f"{prefix}lm_head.weight"].astype(np.float32)
    np.testing.assert_allclose(head, np.asarray(ours.lm_head.trained_weight[...]), rtol=2**-8)


def test_full_fine_tuning_is_saved_as_a_model(folder: Path, tmp_path: Path) -> None:
    base = oracle_of("llama-tied-llama3-rope", folder).folder
    with pytest.warns(UserWarning, match="no tokenizer files"):
        model, _ = FastLanguageModel.from_pretrained(
            str(base), max_seq_length=None, full_finetuning=True, dtype="float16"
        )
    randomised(model).save_pretrained(tmp_path / "tuned")
    written = load_file(tmp_path / "tuned" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {np.dtype(np.float16)}
    up = np.asarray(model.model.layers.mlp.up_proj.weight[...])
    np.testing.assert_array_equal(
        written["model.layers.1.mlp.up_proj.weight"], up[1].astype(np.float16)
    )
    compare_with_transformers(tmp_path / "tuned")


def test_other_methods(folder: Path, tmp_path: Path) -> None:
    oracle = oracle_of("llama-tied-llama3-rope", folder)
    ours = load_adapted(oracle.adapter_folder)
    ours.save_pretrained_merged(tmp_path / "lora", word_tokenizer(), "lora")
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    with pytest.raises(ValueError, match="`save_method` must be"):
        ours.save_pretrained_merged(tmp_path / "no", save_method="16bit")
    with pytest.raises(ValueError, match="must not replace its own base"):
        ours.save_pretrained_merged(oracle.folder)
    assert not (tmp_path / "no").exists()


def test_a_failed_write_leaves_the_old_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_adapted(oracle_of("llama-tied-llama3-rope", folder).adapter_folder)
    out = tmp_path / "merged"
    ours.save_pretrained_merged(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    from jaxtune import merged_tensors

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(merged_tensors, "merge_linear", fail)
    with pytest.raises(OSError, match="disk full"):
        ours.save_pretrained_merged(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_card_of_the_users_own_stays(folder: Path, tmp_path: Path) -> None:
    ours = load_adapted(oracle_of("llama-tied-llama3-rope", folder).adapter_folder)
    ours.save_pretrained(tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    assert "PeftModel.from_pretrained" in card.read_text()
    card.write_text("mine")
    ours.save_pretrained(tmp_path / "out")
    assert card.read_text() == "mine"
