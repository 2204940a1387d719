"""Values of bitsandbytes' dynamic 8-bit codes, the middles between them, and where they lie."""

import itertools
import struct

DECADES = 7


def single(x: float) -> float:
    """Round to float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def midpoints(table: tuple[float, ...]) -> tuple[float, ...]:
    """Middles of neighbours, each step in float32, as bitsandbytes' kernels have them."""
    pairs = itertools.pairwise(table)
    return tuple(single(single(low + high) * 0.5) for low, high in pairs)


def dynamic_table(*, signed: bool = True) -> tuple[float, ...]:
    """The 256 values of bitsandbytes' dynamic 8-bit type, ascending.

    For each decade 10^(i - 6), i = 0 .. 6: the n middles of n + 1 equally spaced points of
    [0.1, 1], n = 2^i, and their negatives (unsigned: n = 2^(i + 1)); and 0 and 1. Every step is
    rounded as torch rounds it.

    Source: https://arxiv.org/abs/2110.02861, section 2; bitsandbytes `create_dynamic_map`.
    """
    values = [0.0, 1.0]
    for i in range(DECADES):
        points = _linspace(_values(i, signed) + 1)
        scale = single(10.0 ** (i + 1 - DECADES))
        middles = [single(single(low + high) * 0.5) for low, high in itertools.pairwise(points)]
        values += [single(scale * m) for m in middles]
        values += [-single(scale * m) for m in middles if signed]
    return tuple(sorted(values))


def lines(*, signed: bool) -> tuple[tuple[float, float], ...]:
    """(slope, intercept) of each decade, whose lowest line tells where a magnitude lies.

    Let t(a) be the number of positive values below the magnitude a, counted on linearly between
    the borders of their cells. Cells of a decade are equally wide, and wider in the next, so t is
    the lowest of one line a decade. Borders between decades, next to 0 and next to 1 are where a
    *middle* is not a cell's border: they are off by 0.14 to 0.25 of a cell.

    Returns:
      Lines of t - 1/2, whose floor k leaves two candidates: the values number k and k + 1.
    """
    found, below = [], 1
    for i in range(DECADES):
        count = _values(i, signed)
        slope = count / 0.9 * 10.0 ** (DECADES - 1 - i)
        found.append((slope, below - count / 9 - 0.5))
        below += count
    return tuple(found)


def _values(decade: int, signed: bool) -> int:
    return 2**decade if signed else 2 ** (decade + 1)


def _linspace(count: int) -> list[float]:
    """torch.linspace(0.1, 1, count) in float32: from the left in its first half, then the right."""
    start = single(0.1)
    step = single((1.0 - start) / (count - 1))
    left = [single(start + step * i) for i in range(count // 2)]
    return left + [single(1.0 - step * (count - 1 - i)) for i in range(count // 2, count)]


# By whether the type is signed.
DYNAMIC_TABLES = {signed: dynamic_table(signed=signed) for signed in (True, False)}
MIDDLES = {signed: midpoints(table) for signed, table in DYNAMIC_TABLES.items()}
LINES = {signed: lines(signed=signed) for signed in (True, False)}
ZERO_CODES = {signed: table.index(0.0) for signed, table in DYNAMIC_TABLES.items()}
DYNAMIC_TABLE = DYNAMIC_TABLES[True]
