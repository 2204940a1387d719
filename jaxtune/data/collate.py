"""The window of a step, and rows padded to one of a few static shapes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxtune.data.batch import IGNORE, Batch, MicroBatches
from jaxtune.data.rows import TokenizedRows

# Row lengths are rounded up to this many tokens, so that near lengths share a compiled program.
GRANULE = 64
MAX_BUCKETS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the data a run stands, between two windows.

    Attributes:
      epoch: Pass over the data, from 0.
      window: Windows of it that are done.
      chunk: Of a stream: chunks of it that are used up.
      used: Of a stream: examples used of the chunk after them.
    """

    epoch: int = 0
    window: int = 0
    chunk: int = 0
    used: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """The rows of one optimizer step.

    Attributes:
      batch: [accumulation * B, T] rows, the last window of an epoch filled with empty ones; or
        packed micro-batches.
      tokens: Tokens in it, padding left out.
      rows: Examples in it.
      after: Where a run stands that has trained on it.
    """

    batch: Batch | MicroBatches
    tokens: int
    rows: int
    after: Place = dataclasses.field(default_factory=Place)


def bucket_lengths(lengths: np.ndarray, max_length: int) -> tuple[int, ...]:
    """At most four row lengths that cover the data: its quartiles, rounded up.

    Args:
      lengths: Tokens of each row.
      max_length: Upper bound, tokens.

    Returns:
      Ascending lengths; the last one holds the longest row.
    """
    quantiles = np.quantile(lengths, np.arange(1, MAX_BUCKETS + 1) / MAX_BUCKETS)
    rounded = -(-quantiles.astype(np.int64) // GRANULE) * GRANULE
    longest = min(max(int(rounded[-1]), GRANULE), max_length)
    return tuple(sorted({*(int(n) for n in rounded if 0 < n < longest), longest}))


def windows_per_epoch(rows: int, batch_size: int, accumulation: int) -> int:
    """Optimizer steps an epoch; the last one takes the remainder, as in transformers."""
    micro_batches = -(-rows // batch_size)
    return max(1, -(-micro_batches // accumulation))


def collate(
    rows: TokenizedRows, chosen: Sequence[int] | np.ndarray, size: int, length: int
) -> Batch:
    """Pad rows on the right, and the batch with empty rows; padding is masked by length.

    Args:
      rows: All rows; those without labels learn every token.
      chosen: Numbers of the rows in the batch.
      size: Rows of the batch, at least as many.
      length: Of the longest row, tokens, or more.

    Returns:
      [size, length], layout "causal".
    """
    input_ids = np.zeros((size, length), np.int32)
    labels = np.full((size, length), IGNORE, np.int32)
    for place, number in enumerate(chosen):
        row = rows.rows[number]
        input_ids[place, : len(row)] = row
        labels[place, : len(row)] = row if rows.labels is None else rows.labels[number]
    return Batch(input_ids=input_ids, labels=labels, layout="causal")
