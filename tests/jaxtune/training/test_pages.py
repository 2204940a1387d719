"""The scripts of three published pages, with other imports, names and fewer steps."""

import ast
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import jaxtune
from tests.packaged import packaged_model_folder
from tests.pages import blocks, changed

STEPS = 2
ROWS = [
    {"text": f"{n} plus {n} is {2 * n}.", "instruction": f"Add {n} to {n}.", "output": str(2 * n)}
    for n in range(12)
]


@pytest.fixture(scope="module")
def pages(assets: Path) -> Path:
    folder = assets.parent / "pages"
    if not folder.is_dir():
        pytest.skip(f"no pages at {folder}")
    return folder


@pytest.fixture
def runner(pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the blocks of a page that hold all of some words, one after the other."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = str(packaged_model_folder())
    names = {
        "unsloth/Llama-3.2-1B-Instruct": model,
        "unsloth/Llama-3.2-3B-Instruct": model,
        "unsloth/llama-3-8b-bnb-4bit": model,
        "your_dataset": str(data),
    }
    # What a page takes as given.
    space: dict[str, Any] = {"torch": torch, "dataset": datasets.Dataset.from_list(ROWS)}

    def run(page: str, *words: str) -> dict[str, Any]:
        chosen = [b for b in blocks((pages / page).read_text()) if all(w in b for w in words)]
        assert chosen, (page, words)
        for block in chosen:
            code = compile(changed(block, names, STEPS), page, "exec")
            exec(code, space)  # noqa: S102  the page's own code is what is tested
        return space

    return run


def check_trained(trainer: jaxtune.SFTTrainer, steps: int = STEPS) -> None:
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert trainer.state.global_step == steps
    assert losses
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_the_guide(runner: Callable[..., Any]) -> None:
    """Plain `TrainingArguments`; the column, the length and the dtype as trainer arguments."""
    space = runner("unsloth_guide.txt")
    check_trained(space["trainer"])
    assert space["trainer"].args.optim == "adamw_8bit"
    assert space["trainer"].args.max_grad_norm == 1.0


@pytest.mark.slow
def test_the_usage_page_basic_then_packed_then_formatted(runner: Callable[..., Any]) -> None:
    space = runner("sfttrainer_usage.txt", "load_dataset")
    check_trained(space["trainer"])
    basic = len(space["trainer"].train_dataset)
    assert basic == len(ROWS)
    space = runner("sfttrainer_usage.txt", "packing = True")
    space["trainer"].train()
    check_trained(space["trainer"])
    assert space["trainer"]._plan().kind == "packed"
    space = runner("sfttrainer_usage.txt", "formatting_prompts_func")
    space["trainer"].train()
    check_trained(space["trainer"])
    first = space["trainer"].train_dataset[0]["input_ids"]
    assert "### Response:" in space["tokenizer"].decode(first)


def test_the_settings_that_the_usage_page_recommends(runner: Callable[..., Any]) -> None:
    runner("sfttrainer_usage.txt", "IMPORTANT")
    space = runner("sfttrainer_usage.txt", "warmup_ratio")
    assert space["training_args"].warmup(100) == 3
    assert space["training_args"].fp16 == (not torch.cuda.is_bf16_supported())


def test_the_signature_of_the_usage_page(pages: Path) -> None:
    """Its block is no code: the parameters are those that ours has."""
    page = (pages / "sfttrainer_usage.txt").read_text()
    [block] = [block for block in blocks(page) if "PreTrainedModel," in block]
    with pytest.raises(SyntaxError):
        ast.parse(block)
    named = re.findall(r"^    (\w+): ", block, flags=re.MULTILINE)
    assert len(named) == 11
    assert set(named) <= set(inspect.signature(jaxtune.SFTTrainer.__init__).parameters)


def test_the_imports_of_the_pages(runner: Callable[..., Any]) -> None:
    runner("sfttrainer_usage.txt", "IMPORTANT")
    space = runner("unslothtrainer.txt", "Or equivalently")
    assert space["SFTTrainer"] is jaxtune.SFTTrainer
    assert space["UnslothTrainer"] is jaxtune.UnslothTrainer


@pytest.mark.slow
def test_the_unsloth_trainer_page(runner: Callable[..., Any]) -> None:
    space = runner("unslothtrainer.txt", "from_pretrained")
    check_trained(space["trainer"])  # 12 rows, 8 a step
    assert [folder.name for folder in Path("outputs").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.slow
def test_the_embedding_rate_of_the_unsloth_trainer_page(runner: Callable[..., Any]) -> None:
    """On a base model, as the page means it: one that has an adapter takes no other."""
    space = runner("unslothtrainer.txt", "import FastLanguageModel, UnslothTrainer")
    space["model"], space["tokenizer"] = space["FastLanguageModel"].from_pretrained(
        str(packaged_model_folder()), load_in_4bit=False
    )
    space = runner("unslothtrainer.txt", "modules_to_save")
    trainer = space["UnslothTrainer"](
        model=space["model"],
        tokenizer=space["tokenizer"],
        args=space["args"],
        train_dataset=space["dataset"],
    )
    trainer.train()
    check_trained(trainer, steps=6)
    assert space["args"].embedding_learning_rate == 5e-5
