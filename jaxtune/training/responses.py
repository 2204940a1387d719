"""`train_on_responses_only`: Unsloth's name for learning answers in rows of rendered text."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtune.data.response_markers import Markers, ResponseMask, probed_markers
from jaxtune.data.rows import TokenizedRows
from jaxtune.data.stream import RowStream
from jaxtune.training.inputs import check_rows
from jaxtune.training.train_rows import known_rows

LabelFunction = Callable[[Mapping[str, Any]], dict[str, list[list[int]]]]


def train_on_responses_only(
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
) -> Any:
    """Learn what follows each response marker, up to the next instruction marker or the end.

    The end-of-turn token is learned with the answer. What labels ignore already stays ignored;
    rows without an answer are left out and counted.

    Args:
      trainer: An `SFTTrainer`, whose rows are masked, those of evaluations too; None with
        `return_function`.
      instruction_part: Text that opens the user's turns; None with `response_part`: both are seen
        in the tokenizer's chat template.
      response_part: Text that opens the assistant's turns.
      force_match: Markers are found as the tokens that they have alone; False: also as those that
        they have among other characters.
      tokenizer: None: the trainer's.
      return_function: Mask nothing, and return the function that makes labels of a batch of
        `input_ids`, for dataset.map(function, batched=True).
      num_proc: Of Unsloth's face; at least 1. The rows are masked in this process.
      last_response_only: Learn the last answer of a row alone.

    Returns:
      The trainer, or the function.

    Raises:
      ValueError: One marker without the other, markers that occur in no row or cannot be seen in
        the template, or no answer to learn.
      TypeError: `trainer` is none of this library.
    """
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"`num_proc` must be at least 1 or None; got {num_proc}.")
    rows = getattr(trainer, "train_dataset", None)
    if not return_function and not isinstance(rows, TokenizedRows | RowStream):
        raise TypeError(
            f"`trainer` must be a jaxtune.SFTTrainer; got {type(trainer).__name__}. Make it first, "
            "with train_dataset=, and pass it."
        )
    tokenizer = tokenizer if tokenizer is not None else getattr(trainer, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "a tokenizer is needed; got None, and no trainer has one. Pass tokenizer=."
        )
    mask = ResponseMask(
        tokenizer,
        _markers(instruction_part, response_part, tokenizer),
        exact=force_match,
        last_only=last_response_only,
    )
    if return_function or not isinstance(rows, TokenizedRows | RowStream):
        return _label_function(mask)
    limit = trainer.max_length
    masked = mask.apply(known_rows(rows), limit)
    check_rows(masked)
    if isinstance(rows, RowStream):
        rows.change(functools.partial(mask.masked, max_length=limit))
    else:
        trainer.train_dataset = masked
    held = trainer.eval_dataset
    if isinstance(held, dict):
        trainer.eval_dataset = {name: mask.apply(its, limit) for name, its in held.items()}
    elif held is not None:
        trainer.eval_dataset = mask.apply(held, limit)
    return trainer


def _markers(instruction: str | None, response: str | None, tokenizer: Any) -> Markers:
    if instruction is not None and response is not None:
        return Markers(instruction=instruction, response=response)
    if instruction is None and response is None:
        return probed_markers(tokenizer)
    missing = "instruction_part" if instruction is None else "response_part"
    raise ValueError(
        f"`instruction_part` and `response_part` go together; `{missing}` is None. Pass both, or "
        "neither: then they are seen in the chat template."
    )


def _label_function(mask: ResponseMask) -> LabelFunction:
    def labels(examples: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        """The labels of a batch of `input_ids`."""
        ids = [np.asarray(row, np.int32) for row in examples["input_ids"]]
        had = examples.get("labels") if "labels" in examples else None
        given = [None] * len(ids) if had is None else [np.asarray(row, np.int32) for row in had]
        made = [mask.labels(row, its) for row, its in zip(ids, given, strict=True)]
        return {"labels": [row.tolist() for row in made]}

    return labels
