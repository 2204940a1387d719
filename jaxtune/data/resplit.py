"""Re-binning the rows of a window into few micro-batches of one or two static shapes.

The loss of a window is one sum over its tokens, so it may be cut anew without changing the
gradient. A micro-batch holds no more tokens than the padded one that the user asked for could.
"""

from collections.abc import Sequence

from jaxtune.data.packing import best_fit

# Row lengths are multiples of this, so that kernels meet whole blocks.
GRANULE = 64
# What a micro-batch costs beside its tokens (weights are read and dequantised), in tokens. On
# Alpaca at 2 x 4 rows: 0 gives 2.6 micro-batches and 8 % padding, 128 gives 2.3 and 9 %, 10^6
# gives 1.9 and 11 %.
OVERHEAD = 128
# A second shape is a second copy of the model's program to compile: it must save so much.
SECOND_SHAPE = 0.95
# Lengths tried for each shape.
_TRIED = 12

# For each shape its bins, for each bin its rows.
Cut = tuple[list[list[int]], ...]


def rebin(lengths: Sequence[int], shapes: tuple[int, ...], devices: int = 1) -> Cut:
    """Put the rows of a window into bins, as cheaply as best fit decreasing finds.

    Args:
      lengths: Tokens of each row of the window.
      shapes: One or two capacities, ascending; the last one holds every row.
      devices: Bins of a micro-batch.

    Returns:
      For each shape the bins in use, as numbers of rows.

    Raises:
      ValueError: A row is longer than the last shape.
    """
    short, long = shapes[0], shapes[-1]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    descending = [lengths[row] for row in order]
    placed = best_fit(descending, long)
    if placed is None:
        raise ValueError(
            f"the longest shape must hold every row; got {long} tokens for a row of "
            f"{max(lengths)}. Choose the shapes from all rows."
        )
    most = _rounds(placed, devices)
    found = (cost((most,), (long,), devices), most, placed)
    if len(shapes) > 1:
        # A few long bins fewer, their rows in short ones; or short ones alone.
        for wide in {most - 1, most - 2, most - 3, 0}:
            placed = None
            if 0 <= wide < most:
                placed = best_fit(descending, short, [long] * (wide * devices))
            if placed is not None:
                narrow = max(_rounds(placed, devices) - wide, 0)
                found = min(found, (cost((narrow, wide), shapes, devices), wide, placed))
    _, wide, placed = found
    bins: list[list[int]] = [[] for _ in range(max(placed) + 1)]
    for row, place in zip(order, placed, strict=True):
        bins[place].append(row)
    if len(shapes) == 1:
        return (bins,)
    return bins[wide * devices :], bins[: wide * devices]


def _rounds(placed: Sequence[int], devices: int) -> int:
    """Micro-batches that hold the bins."""
    return -(-(max(placed) + 1) // devices)


def cost(counts: Sequence[int], shapes: Sequence[int], devices: int) -> int:
    """Of so many micro-batches of each shape, in tokens."""
    return sum(
        count * (length * devices + OVERHEAD) for count, length in zip(counts, shapes, strict=True)
    )


def cost_of(cut: Cut, shapes: Sequence[int], devices: int) -> int:
    """Of the micro-batches that a window's bins make."""
    return cost([-(-len(bins) // devices) for bins in cut], shapes, devices)


def choose_shapes(
    windows: Sequence[Sequence[int]], longest: int, capacity: int, devices: int = 1
) -> tuple[int, ...]:
    """The one or two row lengths that make these windows cheapest.

    Args:
      windows: Row lengths of some windows, tokens.
      longest: Row of the data set, tokens.
      capacity: Tokens that a row of a micro-batch may have, at least `longest`.
      devices: Rows of a micro-batch.

    Returns:
      Ascending lengths; the last one holds the longest row.
    """
    long = _spread({longest, capacity, *_granules(longest, capacity)})
    pairs = [(length,) for length in long]
    for length in long:
        pairs += [(short, length) for short in _spread(set(_granules(1, length - 1)))]
    costs = {
        shapes: sum(cost_of(rebin(window, shapes, devices), shapes, devices) for window in windows)
        for shapes in pairs
    }
    alone = min((shapes for shapes in pairs if len(shapes) == 1), key=costs.__getitem__)
    best = min(pairs, key=costs.__getitem__)
    return best if costs[best] < SECOND_SHAPE * costs[alone] else alone


def _granules(least: int, most: int) -> range:
    """Multiples of the granule between two lengths, both included."""
    return range(-(-least // GRANULE) * GRANULE, most + 1, GRANULE)


def _spread(lengths: set[int]) -> list[int]:
    """Not too many of them, evenly chosen, the ends included."""
    ordered = sorted(lengths)
    if len(ordered) <= _TRIED:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(n * last / (_TRIED - 1))] for n in range(_TRIED)]


def slots(shapes: Sequence[int], rows: int, longest: int, devices: int = 1) -> tuple[int, ...]:
    """Micro-batches of each shape that any window needs at most.

    Two bins of best fit hold more than a capacity together, or one would not have been opened.

    Args:
      shapes: Capacities of a bin.
      rows: Of a window.
      longest: Row of the data set, tokens.
      devices: Bins of a micro-batch.

    Returns:
      A bound for each shape.
    """
    bins = (min(rows, 2 * rows * longest // length + 1) for length in shapes)
    return tuple(-(-count // devices) for count in bins)
