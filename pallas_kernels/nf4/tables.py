"""Values of the 4-bit codes, and of the 8-bit codes of absmax."""

import itertools
import struct

NF4_TABLE = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def single(x: float) -> float:
    """Round to float32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def midpoints(table: tuple[float, ...]) -> tuple[float, ...]:
    """Middles of neighbours, each step in float32, as bitsandbytes' kernels have them."""
    pairs = itertools.pairwise(table)
    return tuple(single(single(low + high) * 0.5) for low, high in pairs)


def dynamic_table() -> tuple[float, ...]:
    """The 256 signed values of bitsandbytes' dynamic 8-bit type, ascending.

    For each decade 10^(i - 6), i = 0 .. 6: the 2^i middles of 2^i + 1 equally spaced points of
    [0.1, 1], and their negatives; and 0 and 1. Every step is rounded as torch rounds it.

    Source: https://arxiv.org/abs/2110.02861, section 2; bitsandbytes `create_dynamic_map`.
    """
    values = [0.0, 1.0]
    for i in range(7):
        points = _linspace(2**i + 1)
        scale = single(10.0 ** (i - 6))
        middles = [single(single(low + high) * 0.5) for low, high in itertools.pairwise(points)]
        values += [single(scale * m) for m in middles] + [-single(scale * m) for m in middles]
    return tuple(sorted(values))


def _linspace(count: int) -> list[float]:
    """torch.linspace(0.1, 1, count) in float32: from the left in its first half, then the right."""
    start = single(0.1)
    step = single((1.0 - start) / (count - 1))
    left = [single(start + step * i) for i in range(count // 2)]
    return left + [single(1.0 - step * (count - 1 - i)) for i in range(count // 2, count)]


DYNAMIC_TABLE = dynamic_table()


CELLS = 32  # of [-1, 1]; each holds at most one middle of neighbouring values of NF4


def cells() -> tuple[tuple[float, ...], tuple[int, ...]]:
    """For each cell of width 2 / CELLS: its middle (2 where it has none), and its lowest code.

    The code of x is then codes[cell] + (x > middles[cell]): one comparison in place of fifteen.
    """
    width, middles = 2 / CELLS, midpoints(NF4_TABLE)
    lefts = [-1 + width * cell for cell in range(CELLS + 1)]  # x = 1 begins one of its own
    inside = [[m for m in middles if left <= m < left + width] for left in lefts]
    codes = tuple(sum(m < left for m in middles) for left in lefts)
    return tuple(found[0] if found else 2.0 for found in inside), codes
