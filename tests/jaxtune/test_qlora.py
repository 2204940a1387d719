"""QLoRA: 4-bit weights are tuned, saved, merged, and read by peft and transformers."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import peft
import pytest
import torch
import transformers

pytest.importorskip("bitsandbytes")

from convert import cast, merge_adapter, open_checkpoint
from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.adapters.modules import linear_places
from jaxtune.language_model import LanguageModel
from jaxtune.quickstart.tasks import NEW_TASK, text
from jaxtune.quickstart.tiny_model import words
from pallas_kernels import NF4
from pallas_kernels.nf4 import Bank, layer_matrix
from tests.oracles import random_rows
from tests.packaged import packaged_model_folder
from tests.quantized_models import LEFT_DENSE, dequantized, load, save_4bit, save_dense
from tests.tolerances import relative_error, tolerance
from tests.words import WORDS

pytestmark = pytest.mark.parity
MIXED_ROWS = random_rows((2, 9))


def tune(model: LanguageModel, rows: list[dict[str, str]], steps: int) -> list[float]:
    """Train an adapter over every projection; the loss of each step."""
    FastLanguageModel.get_peft_model(model, r=4, lora_alpha=8, random_state=0)
    args = SFTConfig(
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        warmup_steps=0,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model, args=args, train_dataset=rows)
    trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def in_torch(model: LanguageModel, folder: Path) -> Any:
    """Transformers' model of a 16-bit folder, its projections holding our 4-bit values."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {}
    for place in linear_places(model):
        stack: Any = place.module.weight.get_value()
        assert isinstance(stack, NF4)
        for layer, name in enumerate(place.names):
            matrix = layer_matrix(stack, layer, jnp.float32, "auto")
            weights[f"{name}.weight"] = torch.tensor(np.asarray(matrix))
    assert not base.load_state_dict(weights, strict=False).unexpected_keys
    return base


def torch_logits(model: Any, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(rows)).logits.numpy()


def ours(model: LanguageModel, rows: np.ndarray) -> np.ndarray:
    return np.asarray(model(rows.astype(np.int32)))


def check_in_peft(model: LanguageModel, folder: Path, adapter: Path, rows: np.ndarray) -> None:
    """The saved adapter over the same values in peft gives our logits."""
    model.save_pretrained(adapter)
    theirs = peft.PeftModel.from_pretrained(in_torch(model, folder), adapter)
    difference = np.abs(ours(model, rows) - torch_logits(theirs, rows)).max()
    assert difference <= 1e-4


@pytest.mark.slow
def test_the_packaged_model_learns_in_4_bits_and_peft_computes_the_same(tmp_path: Path) -> None:
    folder = packaged_model_folder()
    model = load(folder, max_seq_length=40, use_gradient_checkpointing=False)
    # Words of one length: one width of the batches, one compilation.
    rows = [{"text": text(NEW_TASK, word)} for word in words(0)[0] if len(word) == 6][:120]
    losses = tune(model, rows, 30)
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    ids = np.asarray(model.carried.tokenizer(rows[0]["text"])["input_ids"])[None]
    check_in_peft(model, folder, tmp_path / "adapter", ids)


@pytest.mark.slow
def test_stories_learn_in_4_bits_and_peft_computes_the_same(assets: Path, tmp_path: Path) -> None:
    folder = assets / "stories260K"
    model = load(folder, max_seq_length=64, use_gradient_checkpointing=False)
    lines = (assets / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()[:4]
    rows = [{"text": " ".join(json.loads(line).values())} for line in lines]
    losses = tune(model, rows, 30)
    assert losses[-1] < losses[0] - 0.5  # one batch, again and again
    check_in_peft(model, folder, tmp_path / "adapter", np.arange(3, 43)[None])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel, Path]:
    """A folder of bitsandbytes with dense layers, ours tuned over it, and the adapter."""
    folder = tmp_path_factory.mktemp("mixed")
    base = save_4bit(
        save_dense(folder / "dense", layers=4),
        folder / "base",
        dtype=torch.bfloat16,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["lm_head", *LEFT_DENSE],
    )
    model = load(base, use_gradient_checkpointing=False)
    losses = tune(model, [{"text": " ".join(WORDS[n : n + 9])} for n in range(12)], 3)
    assert len(losses) == 3
    model.save_pretrained(folder / "adapter")
    return base, model, folder / "adapter"


@pytest.mark.slow
def test_an_adapter_of_a_mixed_checkpoint_is_the_same_in_peft(
    mixed: tuple[Path, LanguageModel, Path],
) -> None:
    base, model, adapter = mixed
    assert isinstance(model.model.layers.mlp.down_proj.weight.get_value(), Bank)
    assert json.loads((adapter / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(base)
    theirs = peft.PeftModel.from_pretrained(dequantized(base).double(), adapter).double()
    expected = torch_logits(theirs, MIXED_ROWS)
    assert relative_error(ours(model, MIXED_ROWS), expected) <= tolerance("float32", "logits")
    plain = torch_logits(dequantized(base), MIXED_ROWS)
    assert relative_error(plain, expected) > 1e-3  # the adapter does something


@pytest.mark.slow
def test_merging_rounds_the_dequantised_sum_once_to_a_16_bit_model(
    mixed: tuple[Path, LanguageModel, Path], tmp_path: Path
) -> None:
    base, model, adapter = mixed
    model.save_pretrained_merged(tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    wide = peft.PeftModel.from_pretrained(dequantized(base).double(), adapter).double()
    expected = wide.merge_and_unload().state_dict()
    with open_checkpoint(tmp_path / "merged") as checkpoint:
        assert frozenset(checkpoint.names) == expected.keys()
        for name in checkpoint.names:
            rounded = cast(expected[name].numpy(), np.dtype(ml_dtypes.bfloat16))
            np.testing.assert_array_equal(checkpoint.read(name), rounded, name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32
    )
    again = load(tmp_path / "merged", load_in_4bit=False)
    difference = ours(again, MIXED_ROWS) - torch_logits(theirs, MIXED_ROWS)
    assert np.abs(difference).max() <= 2e-4


def test_what_was_quantised_while_loading_is_merged_into_its_originals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = packaged_model_folder()
    model = FastLanguageModel.get_peft_model(load(folder), r=2, init_lora_weights=False)
    model.save_pretrained(tmp_path / "adapter")
    model.save_pretrained_merged(tmp_path / "ours")
    assert "the original dense ones are merged" in "".join(capsys.readouterr())
    merge_adapter(folder, tmp_path / "adapter", tmp_path / "theirs")
    with (
        open_checkpoint(tmp_path / "ours") as actual,
        open_checkpoint(tmp_path / "theirs") as wanted,
    ):
        assert actual.names == wanted.names
        for name in wanted.names:
            np.testing.assert_array_equal(actual.read(name), wanted.read(name), name)
