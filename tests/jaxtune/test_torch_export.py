"""`to_torch`: the logits of every family, of 4-bit bases, and what peft then does with it."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

import jaxtune
from jaxtune import FastLanguageModel
from jaxtune.language_model import LanguageModel
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle, oracle_logits, random_rows
from tests.quantized_models import dequantized, load, save_4bit, save_dense
from tests.tolerances import relative_error, tolerance

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
ROWS = random_rows((2, 9))
OURS = ROWS.astype(np.int32)
FAMILIES = [
    "llama-tied-llama3-rope",
    "mistral-windowed-wide-heads",
    "gemma-one-kv-head",
    "gemma2-five-layers",
    "gemma3-tail-two-ropes",
    "gemma3-multimodal",
    "qwen3-last-layers-windowed",
]


@functools.cache
def oracle_of(name: str, folder: Path) -> Oracle:
    return make_oracle(VARIANTS[BY_NAME[name]], folder / name, initializer_range=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch")


@torch.no_grad()
def logits(model: Any) -> np.ndarray:
    return model(input_ids=torch.tensor(ROWS)).logits.float().numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_it_gives_our_logits_with_and_without_its_adapter(name: str, folder: Path) -> None:
    oracle = oracle_of(name, folder)
    theirs = jaxtune.to_torch(load_adapted(oracle.adapter_folder))
    assert isinstance(theirs, peft.PeftModel)
    assert theirs.peft_config["default"].base_model_name_or_path == str(oracle.folder)
    limit = tolerance("float32", "logits")
    assert relative_error(logits(theirs), oracle_logits(oracle, ROWS)) <= limit
    with theirs.disable_adapter():
        expected = oracle_logits(oracle, ROWS, adapters=False)
        assert relative_error(logits(theirs), expected) <= limit


def moved(model: LanguageModel) -> LanguageModel:
    """Every trained array away from where it starts; padding of stacks has no place in files."""
    draw = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        held = leaf.get_value()
        leaf.set_value(held + 0.1 * draw.normal(size=held.shape).astype(np.float32))
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama-biases-linear-rope", {"use_dora": True, "bias": "all"}),
        ("llama-tied-llama3-rope", {"modules_to_save": ["embed_tokens"]}),
        ("llama-untied", {"modules_to_save": ["lm_head"], "use_rslora": True}),
    ],
)
def test_what_else_is_trained_goes_along(
    name: str, options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    base = load_base(oracle_of(name, folder).folder)
    ours = moved(FastLanguageModel.get_peft_model(base, r=4, **options))
    theirs = jaxtune.to_torch(ours)
    limit = tolerance("float32", "logits")
    assert relative_error(ours(OURS), logits(theirs)) <= limit
    theirs.save_pretrained(tmp_path)
    assert relative_error(load_adapted(tmp_path)(OURS), logits(theirs)) <= limit


def test_4_bit_weights_are_those_that_training_computes_with(tmp_path: Path) -> None:
    dense = save_dense(tmp_path / "dense", layers=2)
    base = save_4bit(dense, tmp_path / "base", dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
    ours = load(base)
    plain = jaxtune.to_torch(ours)
    assert isinstance(plain, transformers.LlamaForCausalLM)
    for (name, actual), expected in zip(
        plain.state_dict().items(), dequantized(base).state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(actual.numpy(), expected.numpy(), err_msg=name)
    adapted = moved(FastLanguageModel.get_peft_model(ours, r=4, use_dora=True))
    error = relative_error(adapted(OURS), logits(jaxtune.to_torch(adapted)))
    assert error <= tolerance("float32", "logits")
    # Of a folder that was quantised while it was loaded, too: not its dense originals.
    again = load(dense)
    error = relative_error(again(OURS), logits(jaxtune.to_torch(again)))
    assert error <= tolerance("float32", "logits")


def test_bfloat16_stays(folder: Path) -> None:
    ours = load_base(oracle_of("llama-untied", folder).folder, dtype="bfloat16")
    theirs = jaxtune.to_torch(ours)
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    ours = load_base(oracle_of("llama-untied", folder).folder)
    imported = importlib.import_module

    def refuse(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ModuleNotFoundError(name)
        return imported(name, *rest)

    monkeypatch.setattr("jaxtune.torch_export.importlib.import_module", refuse)
    with pytest.raises(ImportError, match=r"needs torch, .* pip install 'jaxtune\[torch\]'"):
        jaxtune.to_torch(ours)
