"""A real model, fully fine-tuned, against TRL's trainer with torch's AdamW."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from tests.tolerances import relative_error, tolerance
from tests.trl_runs import run_trl

STEPS = 50
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch",
    "seed": 11,
    "max_length": 64,
    "logging_steps": 1,
    "disable_tqdm": True,
}


def rows_of(assets: Path) -> list[dict[str, str]]:
    lines = (assets / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()[:400]
    rows = [json.loads(line) for line in lines]
    return [{"text": f"{row['question']}\n{row['answer']}"} for row in rows]


def losses_of(trainer: Any) -> list[float]:
    return [float(record["loss"]) for record in trainer.state.log_history if "loss" in record]


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """A model this small gains nothing by more threads, and loses much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def their_losses(assets: Path, folder: Path) -> list[float]:
    source = assets / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    return losses_of(run_trl(model, rows_of(assets), tokenizer, folder, **OPTIONS))


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.usefixtures("_one_thread")
def test_fifty_steps_of_every_weight_have_trls_losses(assets: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own run; nothing of ours warns here
        expected = their_losses(assets, tmp_path)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(assets / "stories260K"), max_seq_length=64, dtype="float32", full_finetuning=True
    )
    trainer = SFTTrainer(
        model, tokenizer=tokenizer, train_dataset=rows_of(assets), args=SFTConfig(**OPTIONS)
    )
    trainer.train()
    found = losses_of(trainer)
    assert len(found) == len(expected) == STEPS
    assert sum(found[-5:]) < sum(found[:5]) - 5 * 0.5
    assert relative_error(found, expected) <= tolerance("float32", "full_loss_50_steps")
