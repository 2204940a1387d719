"""The same with the user's own model and rows: loss and generations before and after."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune import functional as F
from jaxtune.console import say
from jaxtune.language_model import LanguageModel
from jaxtune.quickstart.asking import ask
from jaxtune.quickstart.options import Quickstart
from jaxtune.quickstart.peft_check import check_in_peft, tell_how_to_load

STEPS = 60
ROW = 512  # tokens; longer rows are cut, for a first run that fits
MOST_HELD_OUT = 100  # rows
SHOWN = 3  # rows whose beginning is continued before and after
NEW_TOKENS = 32
EVALUATED = 4  # rows a forward pass


def read_rows(file: Path) -> list[dict[str, str]]:
    """Read JSON lines with a "text" column.

    Args:
      file: UTF-8, one object a line; empty lines are skipped, and rows whose text is blank.

    Returns:
      Rows of the one column `text`.

    Raises:
      FileNotFoundError: No such file.
      ValueError: A line is not an object with a text, or there are fewer than two rows.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--dataset must be a file of JSON lines; {file} is none.")
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"every line of --dataset must be JSON; {file}, line {number}: {error}. Write one "
                'object a line, such as {"text": "..."}.'
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            held = f"columns {sorted(row)}" if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f'every line of --dataset must have a "text" column that holds text; {file}, line '
                f"{number} has {held}. Rename or join your columns to it."
            )
        if row["text"].strip():
            rows.append({"text": row["text"]})
    if len(rows) < 2:
        raise ValueError(
            "--dataset must hold at least two rows of text, one to train on and one to hold out; "
            f"{file} has {len(rows)}."
        )
    return rows


def hold_out(rows: Sequence[dict[str, str]], seed: int) -> tuple[list, list]:
    """Rows to train on, and a tenth of them (at most 100, at least one) held out at random."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = max(1, min(MOST_HELD_OUT, len(rows) // 10))
    return [rows[i] for i in order[count:]], [rows[i] for i in order[:count]]


@functools.partial(jax.jit, static_argnums=0)
def _loss(graphdef: nnx.GraphDef, trainable: nnx.State, frozen: nnx.State, batch: F.Batch) -> Any:
    return F.loss(graphdef, trainable, frozen, batch)


def mean_loss(model: LanguageModel, tokenizer: Any, texts: list[str], limit: int) -> float:
    """Mean loss of a token of the texts, nats, each text cut at `limit` tokens."""
    encoded = [list(tokenizer(text)["input_ids"])[:limit] for text in texts]
    width = max(map(len, encoded))
    graphdef, trainable, frozen = F.split(model)
    total, count = 0.0, 0
    for start in range(0, len(encoded), EVALUATED):
        input_ids = np.zeros((EVALUATED, width), np.int32)
        labels = np.full((EVALUATED, width), -100, np.int32)
        for place, row in enumerate(encoded[start : start + EVALUATED]):
            input_ids[place, : len(row)] = labels[place, : len(row)] = row
        batch = F.Batch(input_ids=input_ids, labels=labels, layout="causal")
        loss_sum, tokens = _loss(graphdef, trainable, frozen, batch)
        total, count = total + float(loss_sum), count + int(tokens)
    return total / max(count, 1)


def run(options: Quickstart) -> int:
    """Tune `options.model` on `options.dataset` and report.

    Args:
      options: With both.

    Returns:
      0, or 1 if the loss of the held-out rows did not fall.
    """
    name = options.model or ""
    trained, held_out = hold_out(read_rows(options.dataset or Path()), options.seed)
    texts = [row["text"] for row in held_out]
    say(f"1. Loading {name}")
    model, tokenizer = FastLanguageModel.from_pretrained(
        name, max_seq_length=None, load_in_4bit=False
    )
    limit = min(ROW, model.config.max_position_embeddings)
    say("", "2. Adding a LoRA adapter of rank 16, which changes nothing yet")
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=16, random_state=options.seed)
    model.print_trainable_parameters()
    before = _evaluate(model, tokenizer, texts, limit)
    say("", f"3. Training it on {len(trained):,} rows")
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=trained,
        args=SFTConfig(
            max_steps=options.steps or STEPS,
            max_length=limit,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            learning_rate=2e-4,
            warmup_steps=5,
            seed=options.seed,
        ),
    )
    trainer.train()
    say("", "4. Asking the same again")
    after = _evaluate(model, tokenizer, texts, limit)
    say("", f"5. Writing the adapter to {options.output}/")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    tell_how_to_load(name, options.output)
    check_in_peft(model, name, options.output, texts[:SHOWN])
    say("", f"Loss of {len(texts)} held-out rows: {before:.4f} before, {after:.4f} after.")
    if not after < before:
        say("It did not fall: try more --steps, or look at the rows.")
        return 1
    return 0


def _evaluate(model: LanguageModel, tokenizer: Any, texts: list[str], limit: int) -> float:
    """Print how the model continues a few held-out rows; return the loss of all of them."""
    prompts = [_beginning(tokenizer, text) for text in texts[:SHOWN]]
    answers = ask(model, prompts, max_new_tokens=NEW_TOKENS)
    for prompt, answer in zip(prompts, answers, strict=True):
        say(f"   {prompt!r}", f"     -> {answer!r}")
    loss = mean_loss(model, tokenizer, texts, limit)
    say(f"   loss of {len(texts)} held-out rows: {loss:.4f}")
    return loss


def _beginning(tokenizer: Any, text: str) -> str:
    """The first third of a text, at most 16 tokens; not by words, which not all scripts space."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[: max(1, min(16, len(ids) // 3))])
