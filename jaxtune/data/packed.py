"""Packed micro-batches: several documents a row, told apart by segment ids."""

from collections.abc import Sequence

import numpy as np

from jaxtune.data.batch import IGNORE, Batch, MicroBatches
from jaxtune.data.rows import TokenizedRows

# Row, first token, one past the last.
Piece = tuple[int, int, int]


def micro_batches(
    rows: TokenizedRows,
    bins: Sequence[Sequence[Sequence[Piece]]],
    *,
    size: int,
    shapes: Sequence[tuple[int, int]],
) -> MicroBatches:
    """Lay out the bins of a window.

    Args:
      rows: All rows.
      bins: For each shape the bins that have it, for each bin its pieces.
      size: Bins of a micro-batch.
      shapes: (slots, length) of each stack.

    Returns:
      A stack [slots, size, length] for each shape.
    """
    return MicroBatches(
        stacks=tuple(
            packed(rows, its, slots, size, length)
            for its, (slots, length) in zip(bins, shapes, strict=True)
        ),
        used=tuple(np.int32(-(-len(its) // size)) for its in bins),
    )


def packed(
    rows: TokenizedRows, bins: Sequence[Sequence[Piece]], slots: int, size: int, length: int
) -> Batch:
    """Write each bin into a row: its pieces, then padding, which is segment 0.

    Args:
      rows: All rows; those without labels learn every token.
      bins: At most slots * size, for each its pieces.
      slots: Micro-batches.
      size: Rows of a micro-batch.
      length: Of a row, tokens; at least that of the longest bin.

    Returns:
      [slots, size, length], layout "packed", with segment ids from 1 and positions from 0 for
      each piece.
    """
    input_ids, segment_ids, positions = np.zeros((3, slots * size, length), np.int32)
    labels = np.full((slots * size, length), IGNORE, np.int32)
    for place, pieces in enumerate(bins):
        end = 0
        for segment, (row, start, stop) in enumerate(pieces, start=1):
            span = slice(end, end + stop - start)
            source = rows.rows if rows.labels is None else rows.labels
            input_ids[place, span] = rows.rows[row][start:stop]
            labels[place, span] = source[row][start:stop]
            segment_ids[place, span] = segment
            positions[place, span] = np.arange(stop - start)
            end = span.stop
    stack = (slots, size, length)
    return Batch(
        input_ids=input_ids.reshape(stack),
        labels=labels.reshape(stack),
        segment_ids=segment_ids.reshape(stack),
        positions=positions.reshape(stack),
        layout="packed",
    )
