"""Values of the 4-bit codes, and where they lie."""

from pallas_kernels.blockwise_quant.tables import midpoints

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
