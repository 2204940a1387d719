"""Losses beside transformers + peft, from one start, over the same rows in one order; a script.

`python -m tests.perf.loss_curves FOLDER --tokenizer DIR --dataset gsm8k/train.jsonl` writes a
random model and its adapter to FOLDER, runs each side in a process of its own on the same card, and
leaves FOLDER/losses.json and FOLDER/losses.png. It ends with 1 if the last losses differ by over
0.5 %.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.bench.random_files import write_random_files
from jaxtune.bench.subject import find_subject, read_config

ALLOWED, LAST = 0.005, 20  # of the mean over so many last steps
SIDES = ("ours", "theirs")
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch",
    "seed": 3407,
    "logging_steps": 1,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What both sides do.

    Attributes:
      folder: Holds the model in `model`, and the adapter's start in `start`.
      rows: With the column `text`.
      steps: Of the optimizer.
      length: Longest row, tokens.
      dtype: Of the base.
    """

    folder: Path
    rows: list[dict[str, str]]
    steps: int
    length: int
    dtype: str


def prepare(run: Run, model: str, tokenizer: Path, rank: int = 16) -> None:
    """Write a random model and the start of its adapter."""
    write_random_files(
        run.folder / "model", find_subject(model), read_config(model), tokenizer, bits=16
    )
    loaded = _loaded(run, run.folder / "model")
    FastLanguageModel.get_peft_model(loaded, r=rank, lora_alpha=rank)
    loaded.save_pretrained(run.folder / "start")


def ours(run: Run, plan: bool | str = "auto") -> list[float]:
    """Our losses."""
    model = _loaded(run, run.folder / "start")
    FastLanguageModel.for_training(model, plan)
    trainer = SFTTrainer(
        model,
        train_dataset=run.rows,
        max_seq_length=run.length,
        args=SFTConfig(
            **SHARED, max_steps=run.steps, save_strategy="no", disable_tqdm=True, bf16=None
        ),
    )
    trainer.train()
    return _losses(trainer.state.log_history)


def _loaded(run: Run, folder: Path) -> Any:
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=run.length, dtype=run.dtype, load_in_4bit=False
    )
    return model


def theirs(run: Run) -> list[float]:
    """Those of TRL's trainer over transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.trl_runs import run_trl

    on_gpu = torch.cuda.is_available()
    base = AutoModelForCausalLM.from_pretrained(
        run.folder / "model", dtype=getattr(torch, run.dtype)
    )
    model = PeftModel.from_pretrained(base, str(run.folder / "start"), is_trainable=True)
    trainer = run_trl(
        model,
        run.rows,
        AutoTokenizer.from_pretrained(run.folder / "model"),
        run.folder / "theirs",
        max_steps=run.steps,
        max_length=run.length,
        use_cpu=not on_gpu,
        bf16=run.dtype == "bfloat16",
        **SHARED,
    )
    return _losses(trainer.state.log_history)


def _losses(history: Sequence[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in history if "loss" in record]


def gap(losses: dict[str, list[float]]) -> float:
    """By how much the means of the last losses differ, of theirs."""
    ends = {side: float(np.mean(values[-LAST:])) for side, values in losses.items()}
    return abs(ends["ours"] / ends["theirs"] - 1)


def draw(losses: dict[str, list[float]], file: Path) -> None:
    """Both curves and their difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    curves, differences = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for side, values in losses.items():
        curves.plot(range(1, len(values) + 1), values, label=side, alpha=0.7)
    curves.set_ylabel("loss")
    curves.legend()
    pairs = zip(losses["ours"], losses["theirs"], strict=True)
    shares = [100 * (a / b - 1) for a, b in pairs]
    differences.plot(range(1, len(shares) + 1), shares)
    differences.set_ylabel("ours over theirs, %")
    differences.set_xlabel("step")
    figure.savefig(file)


def texts_of(dataset: Path) -> list[dict[str, str]]:
    """gsm8k's questions with their answers."""
    lines = dataset.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{"text": f"{row['question']}\n{row['answer']}"} for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--model", default="llama-3.2-1b")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", choices=SIDES, help="run one side alone; both, if left out")
    given = parser.parse_args()
    run = Run(
        folder=given.folder,
        rows=texts_of(given.dataset),
        steps=given.steps,
        length=given.length,
        dtype=given.dtype,
    )
    if given.side is not None:
        found = {"ours": ours, "theirs": theirs}[given.side](run)
        (run.folder / f"{given.side}.json").write_text(json.dumps(found))
        return 0
    for side in ("prepare", *SIDES):
        if side == "prepare" and not (run.folder / "start").is_dir():
            prepare(run, given.model, given.tokenizer)
        elif side in SIDES:
            # Each library would take the card's memory for itself.
            command = [sys.executable, "-m", "tests.perf.loss_curves", *sys.argv[1:]]
            subprocess.run([*command, "--side", side], check=True)
    losses = {side: json.loads((run.folder / f"{side}.json").read_text()) for side in SIDES}
    (run.folder / "losses.json").write_text(json.dumps(losses))
    draw(losses, run.folder / "losses.png")
    sys.stdout.write(f"last losses differ by {100 * gap(losses):.3f} %, wanted <= 0.5 %\n")
    return int(gap(losses) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
