"""Bins from lengths: which documents share a row of a packed data set."""

import bisect
import dataclasses
from collections import deque
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxtune.config import PACKING_STRATEGIES

# `datasets` maps so many rows at a time, and TRL packs each such batch on its own.
GROUP = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bins:
    """Documents, or pieces of them, bin by bin.

    Attributes:
      rows: Row that each piece is of, [P].
      starts: Its first token in that row, [P].
      stops: One past its last, [P].
      offsets: Bin n holds the pieces offsets[n] to offsets[n + 1], [N + 1].
    """

    rows: Int[np.ndarray, " P"]
    starts: Int[np.ndarray, " P"]
    stops: Int[np.ndarray, " P"]
    offsets: Int[np.ndarray, " N1"]

    def __len__(self) -> int:
        """Bins."""
        return len(self.offsets) - 1

    def pieces(self, number: int) -> list[tuple[int, int, int]]:
        """The pieces of a bin in order, each (row, start, stop)."""
        span = slice(self.offsets[number], self.offsets[number + 1])
        columns = (self.rows[span], self.starts[span], self.stops[span])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def tokens(self) -> Int[np.ndarray, " N"]:
        """Tokens of each bin."""
        ends = np.concatenate(([0], np.cumsum(self.stops - self.starts)))
        return np.diff(ends[self.offsets])


def one_a_bin(lengths: Int[np.ndarray, " rows"]) -> Bins:
    """Every row whole, in a bin of its own.

    Args:
      lengths: Tokens of each row.

    Returns:
      As many bins as rows.
    """
    numbers = np.arange(len(lengths))
    return Bins(
        rows=numbers,
        starts=np.zeros_like(numbers),
        stops=np.asarray(lengths, np.int64),
        offsets=np.arange(len(lengths) + 1),
    )


def pack(
    lengths: Int[np.ndarray, " rows"], capacity: int, strategy: str, group: int | None = GROUP
) -> Bins:
    """Put rows into bins of a capacity, as TRL's `pack_dataset` does.

    - "bfd": a row is cut at the capacity; best fit, the longest first.
    - "bfd_split": a longer row is split, its pieces are packed like rows of their own.
    - "wrapped": the rows one after the other, cut wherever a bin is full.

    The bins, and the order in them, are TRL's. Different is how they are trained on: each piece
    is a document that sees nothing but itself, in "wrapped" bins too, where TRL lets it see
    what stands before it in the bin.

    Args:
      lengths: Tokens of each row; empty ones are left out.
      capacity: Of a bin, tokens.
      strategy: One of the three.
      group: Rows that are packed together; None: all of them, which leaves fewer gaps than TRL.

    Returns:
      The bins.

    Raises:
      ValueError: An unknown strategy, or a capacity below 1.
    """
    if strategy not in PACKING_STRATEGIES:
        raise ValueError(
            f"`packing_strategy` must be one of {', '.join(map(repr, PACKING_STRATEGIES))}; got "
            f"{strategy!r}. Pass 'bfd', which keeps documents whole."
        )
    if capacity < 1:
        raise ValueError(f"the capacity of a bin must be at least 1 token; got {capacity}.")
    lengths = np.asarray(lengths, np.int64)
    step = group or max(len(lengths), 1)
    parts = [
        _pack_group(lengths[first : first + step], first, capacity, strategy)
        for first in range(0, len(lengths), step)
    ]
    ends = np.cumsum([0, *(len(part.rows) for part in parts)])
    starts = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
    nothing = np.zeros(0, np.int64)  # concatenate wants one array at least
    return Bins(
        rows=np.concatenate([nothing, *(part.rows for part in parts)]),
        starts=np.concatenate([nothing, *(part.starts for part in parts)]),
        stops=np.concatenate([nothing, *(part.stops for part in parts)]),
        offsets=np.concatenate([*starts, ends[-1:]]),
    )


def _pack_group(lengths: np.ndarray, first: int, capacity: int, strategy: str) -> Bins:
    """The bins of rows `first` and on."""
    rows = first + np.flatnonzero(lengths)
    lengths = lengths[lengths > 0]
    if strategy == "wrapped":
        return _wrapped(rows, lengths, capacity)
    starts = np.zeros_like(lengths)
    if strategy == "bfd_split":
        rows, starts, lengths = _split(rows, lengths, capacity)
    lengths = np.minimum(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    placed = best_fit(lengths[order].tolist(), capacity)
    bins = np.asarray(placed, np.int64)
    by_bin = order[np.argsort(bins, kind="stable")]
    count = int(bins.max()) + 1 if len(bins) else 0
    return Bins(
        rows=rows[by_bin],
        starts=starts[by_bin],
        stops=(starts + lengths)[by_bin],
        offsets=np.concatenate(([0], np.cumsum(np.bincount(bins, minlength=count)))),
    )


def best_fit(lengths: Sequence[int], capacity: int, opened: Sequence[int] = ()) -> list[int] | None:
    """The bin of each length, taken in order: where the least space is left that holds it.

    Of bins with equal space the one that has had it longest; if no bin has space, a new one.

    Args:
      lengths: Tokens; best in descending order.
      capacity: Of a new bin, tokens.
      opened: Capacities of the bins that are there at first.

    Returns:
      A number for each length, the opened bins first; None: one fits nowhere.
    """
    free: dict[int, deque[int]] = {}
    for number, space in enumerate(opened):
        free.setdefault(space, deque()).append(number)
    spaces = sorted(free)
    count = len(opened)
    placed = []
    for length in lengths:
        at = bisect.bisect_left(spaces, length)
        if at < len(spaces):
            space = spaces[at]
            chosen = free[space].popleft()
            if not free[space]:
                del free[space], spaces[at]
        elif length <= capacity:
            space, chosen = capacity, count
            count += 1
        else:
            return None
        placed.append(chosen)
        left = space - length
        if left:
            if left not in free:
                free[left] = deque()
                bisect.insort(spaces, left)
            free[left].append(chosen)
    return placed


def _split(
    rows: np.ndarray, lengths: np.ndarray, capacity: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, start, length) of the pieces, all of the capacity but the last of each row."""
    counts = -(-lengths // capacity)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    starts = (np.arange(counts.sum()) - before) * capacity
    left = np.repeat(lengths, counts) - starts
    return np.repeat(rows, counts), starts, np.minimum(left, capacity)


def _wrapped(rows: np.ndarray, lengths: np.ndarray, capacity: int) -> Bins:
    """Cut the concatenated rows at each end of a row and of a bin."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    filled = np.append(np.arange(capacity, total, capacity), total)
    cuts = np.unique(np.concatenate(([0], ends, filled)))
    begins, stops = cuts[:-1], cuts[1:]
    owner = np.searchsorted(ends, begins, side="right")
    base = (ends - lengths)[owner]
    pieces_before = np.searchsorted(begins, np.arange(0, total, capacity))
    return Bins(
        rows=rows[owner],
        starts=begins - base,
        stops=stops - base,
        offsets=np.append(pieces_before, len(begins)),
    )
