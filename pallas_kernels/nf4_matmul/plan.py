"""How the kernel cuts a product into programs; the numbers that a sweep on a GPU may move."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

# Up to so many rows, and from so large a weight on, the kernel beats a dense weight (one H200).
WORTH_ROWS = 16
WORTH_ELEMENTS = 2**24

MOST_ROWS = 32  # of x; beyond them the tensor cores are busy and a dense weight pays

# Few rows: products and sums by plain arithmetic, which needs no shared memory.
FEW = 1  # rows of x; 0: tensor cores for all
FEW_OUTPUTS = 8  # of each half of the weight, at most; fewer where there would be few programs
FEW_BYTES = 2048  # of codes a step; 128 threads load 16 bytes each
FEW_WARPS = 4
FEW_PROGRAMS = 512

# More: tensor cores, of which one warp's tile is 16 outputs high.
MORE_OUTPUTS = 64
MORE_COLUMNS = 64
LESS_OUTPUTS = 16  # for float32, whose products are plain: a larger tile spills registers
MORE_WARPS = 4
# Reached by splitting the sum, whose parts cost a write each and a second kernel that adds them.
MORE_PROGRAMS = 256
MORE_SUMMED = 256  # columns of a part, at least


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One product's programs: ceil(O / 2 / outputs) times splits of them.

    Attributes:
      rows: M, those of x.
      padded: Rows of x in a tensor core's tile; 0: plain arithmetic, row by row.
      outputs: Rows of each half of the weight that a program reads, a power of two.
      columns: Of x and of the weight, at a step; a power of two that divides I.
      splits: Parts of the sum over I, each whole steps.
      warps: Of a program.
    """

    rows: int
    padded: int
    outputs: int
    columns: int
    splits: int
    warps: int


def make_plan(rows: int, matrix: tuple[int, int], block: int, dtype: DTypeLike) -> Plan:
    """Choose the programs of a product.

    Args:
      rows: M.
      matrix: (O, I) of the weight; O is even, I whole blocks.
      block: Elements of a block, a power of two.
      dtype: Of x.

    Returns:
      The plan.
    """
    half, width = matrix[0] // 2, matrix[1]
    if rows <= FEW:
        outputs = FEW_OUTPUTS
        while outputs > 1 and half < FEW_PROGRAMS * outputs:
            outputs //= 2
        columns = math.gcd(width, max(FEW_BYTES // outputs, block))
        return Plan(
            rows=rows, padded=0, outputs=outputs, columns=columns, splits=1, warps=FEW_WARPS
        )
    columns = math.gcd(width, max(MORE_COLUMNS, block))
    # Wide blocks make the tile lower, so that shared memory holds it.
    outputs = max(LESS_OUTPUTS, MORE_OUTPUTS * MORE_COLUMNS // columns)
    outputs = LESS_OUTPUTS if jnp.dtype(dtype) == jnp.float32 else min(outputs, MORE_OUTPUTS)
    return Plan(
        rows=rows,
        padded=16 if rows <= 16 else MOST_ROWS,
        outputs=outputs,
        columns=columns,
        splits=_splits(-(-half // outputs), width, columns),
        warps=MORE_WARPS,
    )


def _splits(programs: int, width: int, columns: int) -> int:
    """Parts of the sum, a power of two; each is whole steps, and all are equal."""
    splits = 1
    while (
        programs * splits < MORE_PROGRAMS
        and width // columns % (2 * splits) == 0
        and width // (2 * splits) >= MORE_SUMMED
    ):
        splits *= 2
    return splits
