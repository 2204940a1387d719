"""A real trained Llama, a real data set: loaded, tuned, exported, generating."""

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxtune import FastLanguageModel
from jaxtune.language_model import LanguageModel
from tests.stories_losses import STEPS, tuned

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(assets: Path) -> Path:
    return assets / "stories260K"


def load(folder: Path) -> tuple[LanguageModel, transformers.PreTrainedTokenizerBase]:
    return FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=64, dtype="float32", load_in_4bit=False
    )


@pytest.fixture(scope="module")
def run(assets: Path, tmp_path_factory: pytest.TempPathFactory):
    """The model after 100 LoRA steps on gsm8k, the losses, and the adapter's folder."""
    model, losses = tuned(assets)
    adapter = tmp_path_factory.mktemp("stories") / "adapter"
    model.save_pretrained(adapter)
    return model, losses, adapter


def test_logits_equal_the_golden_file(folder: Path) -> None:
    model, _ = load(folder)
    golden = load_file(folder / "golden_logits.safetensors")
    logits = np.asarray(model(golden["input_ids"].astype(np.int32)))
    assert np.abs(logits - golden["logits"]).max() <= 2e-4


@pytest.mark.slow
def test_greedy_stories_are_transformers(folder: Path) -> None:
    model, tokenizer = load(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = ["Once upon a time", "Lily", "The big dog and the red ball were in the park. Then they"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    for options in ({}, {"repetition_penalty": 1.2}):
        ours = model.generate(rows, max_new_tokens=120, **options)[:, width:]
        for row, new in zip(rows, ours, strict=True):
            ids = torch.tensor([row])
            mask = torch.ones_like(ids)
            out = theirs.generate(ids, attention_mask=mask, max_new_tokens=120, **options)
            tokens = out[0, len(row) :].numpy()
            np.testing.assert_array_equal(new[: len(tokens)], tokens)


@pytest.mark.slow
def test_the_loss_falls_in_100_steps(run) -> None:
    _, losses, _ = run
    assert len(losses) == STEPS
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.5


@pytest.mark.slow
def test_the_adapter_in_peft_gives_our_logits_and_tokens(run, folder: Path) -> None:
    model, _, adapter = run
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = model.carried.tokenizer
    texts = ["Once upon a time", "Lily had 3 apples and", "A dog sold 48 clips. How many clips"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    ours = model.generate(rows, max_new_tokens=40)
    width = max(len(row) for row in rows)
    for row, new in zip(rows, ours[:, width:], strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            expected = theirs(input_ids=ids).logits.numpy()
        actual = np.asarray(model(np.asarray([row], np.int32)))
        assert np.abs(actual - expected).max() <= 1e-4
        out = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            pad_token_id=2,
        )
        tokens = out[0, len(row) :].numpy()
        np.testing.assert_array_equal(new[: len(tokens)], tokens)


@pytest.mark.slow
def test_the_saved_adapter_loads_here_with_the_same_logits(run) -> None:
    model, _, adapter = run
    again, _ = FastLanguageModel.from_pretrained(
        str(adapter), max_seq_length=64, dtype="float32", load_in_4bit=False
    )
    rows = np.arange(3, 43, dtype=np.int32)[None]
    np.testing.assert_array_equal(np.asarray(again(rows)), np.asarray(model(rows)))
