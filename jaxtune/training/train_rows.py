"""The rows of a run, all of them or a stream, and the plan that lays them out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxtune.data.plan import Plan, Request, make_plan
from jaxtune.data.row_options import RowOptions
from jaxtune.data.rows import TokenizedRows
from jaxtune.data.stream import RowStream, is_stream
from jaxtune.data.stream_plan import StreamPlan, make_stream_plan
from jaxtune.data.tokenize import tokenize_dataset
from jaxtune.training.config import SFTConfig
from jaxtune.training.inputs import check_rows

TrainRows = TokenizedRows | RowStream


def row_options(
    args: SFTConfig,
    text_field: str | None,
    *,
    formatting_func: Callable[[Any], Any] | None,
    max_length: int,
    threads: int | None,
    vocab_size: int,
) -> RowOptions:
    """What decides the tokens: the options, and what the trainer was given in their place.

    Args:
      args: The options.
      text_field: None: that of the options.
      formatting_func: From the user.
      max_length: Longest row, tokens.
      threads: None: those of the options.
      vocab_size: Of the model.

    Returns:
      How rows are read.
    """
    return RowOptions(
        text_field=args.dataset_text_field if text_field is None else text_field,
        formatting_func=formatting_func,
        max_length=max_length,
        threads=args.dataset_num_proc if threads is None else threads,
        completion_only_loss=args.completion_only_loss,
        assistant_only_loss=args.assistant_only_loss,
        vocab_size=vocab_size,
        bad_rows=args.bad_rows,
        long_rows=args.long_rows,
    )


def read_train_rows(dataset: Any, tokenizer: Any, options: RowOptions, max_steps: int) -> TrainRows:
    """Tokenise the training rows, or the first of a stream.

    Args:
      dataset: From the user.
      tokenizer: A transformers tokenizer; not changed.
      options: What decides the tokens.
      max_steps: Of the run; -1: as many as the epochs have.

    Returns:
      The rows.

    Raises:
      TypeError: `dataset` is no data set.
      ValueError: A stream whose run has no end, bad rows, or nothing to learn.
    """
    if not is_stream(dataset):
        rows = tokenize_dataset(dataset, tokenizer, options)
        check_rows(rows)
        return rows
    if max_steps <= 0:
        raise ValueError(
            f"a run over a stream needs `max_steps`: it has no length, so epochs have no number "
            f"of steps; got {max_steps}. Pass SFTConfig(max_steps=...)."
        )
    stream = RowStream(dataset, tokenizer, options)
    check_rows(stream.head)
    return stream


def known_rows(rows: TrainRows) -> TokenizedRows:
    """What is known before the run: all rows, or the head of a stream."""
    return rows.head if isinstance(rows, RowStream) else rows


def skipped_later(rows: TrainRows) -> tuple[str, ...]:
    """What was left out of a stream, in words, if that is more than its head shows."""
    if isinstance(rows, RowStream) and rows.skipped != rows.head.skipped:
        return rows.skipped
    return ()


def plan_of(rows: TrainRows, request: Request) -> Plan | StreamPlan:
    """How the rows are laid out; the same for the same rows and request."""
    if isinstance(rows, RowStream):
        return make_stream_plan(rows, request)
    return make_plan(np.array([len(row) for row in rows.rows]), request)
