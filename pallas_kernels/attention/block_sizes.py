"""How the Triton kernels of attention cut their axes: the numbers to sweep on a GPU.

A kernel keeps `held` tiles of its own block and streams two tiles of the other axis through
shared memory, `stages` deep, so it takes at most

  (held * own + 2 * stages * other) * H * itemsize bytes

of shared memory: 227 KiB of compute capability 9.0, 163 KiB of 8.0, 99 KiB of 8.6, 8.9 and 12.0.
"""

from dataclasses import dataclass

from pallas_kernels.dispatch import Device


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Cut of one kernel; lengths are powers of two, of 16 or more for Triton's products.

    Attributes:
      q: Positions in a query block.
      k: Positions in a key block.
      warps: Of one program; 4 or 8 make one or two of Hopper's warp groups.
      stages: Depth of the pipeline that loads the other axis.
    """

    q: int
    k: int
    warps: int
    stages: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Cuts of the three kernels.

    Attributes:
      forward: A program keeps a query block and streams keys and values.
      dkv: A program keeps a key block and streams queries and their cotangents.
      dq: A program keeps a query block and streams keys and values.
    """

    forward: Blocks
    dkv: Blocks
    dq: Blocks


# By the widest head that they serve, for 2 bytes an element.
LARGE = {  # data-centre cards: 163 KiB or more
    64: Sizes(
        forward=Blocks(q=128, k=128, warps=8, stages=3),
        dkv=Blocks(q=64, k=128, warps=8, stages=3),
        dq=Blocks(q=128, k=64, warps=8, stages=3),
    ),
    128: Sizes(
        forward=Blocks(q=64, k=64, warps=4, stages=3),
        dkv=Blocks(q=64, k=64, warps=4, stages=2),
        dq=Blocks(q=64, k=64, warps=4, stages=2),
    ),
    256: Sizes(
        forward=Blocks(q=64, k=64, warps=8, stages=2),
        dkv=Blocks(q=32, k=64, warps=8, stages=2),
        dq=Blocks(q=64, k=32, warps=8, stages=2),
    ),
}
SMALL = {  # the others: 99 KiB
    64: Sizes(
        forward=Blocks(q=128, k=64, warps=4, stages=2),
        dkv=Blocks(q=64, k=64, warps=4, stages=2),
        dq=Blocks(q=64, k=64, warps=4, stages=2),
    ),
    128: Sizes(
        forward=Blocks(q=64, k=64, warps=4, stages=2),
        dkv=Blocks(q=32, k=64, warps=4, stages=2),
        dq=Blocks(q=64, k=32, warps=4, stages=2),
    ),
    256: Sizes(
        forward=Blocks(q=64, k=32, warps=8, stages=1),
        dkv=Blocks(q=32, k=32, warps=8, stages=1),
        dq=Blocks(q=32, k=32, warps=8, stages=1),
    ),
}
# Exact float32 products use no tensor cores: small tiles, and registers to hold them.
FLOAT32 = Sizes(
    forward=Blocks(q=32, k=32, warps=4, stages=1),
    dkv=Blocks(q=16, k=32, warps=4, stages=1),
    dq=Blocks(q=32, k=16, warps=4, stages=1),
)
WIDEST_HEAD = max(LARGE)
LARGE_CAPABILITIES = ((8, 0), (9, 0), (10, 0), (10, 3))


def sizes(H: int, itemsize: int, device: Device) -> Sizes:
    """Choose the cuts for heads of width `H`, at most `WIDEST_HEAD`.

    Args:
      H: Head width.
      itemsize: Bytes of one element of q, k and v.
      device: A device that runs no Triton gets the cuts of the large cards.
    """
    if itemsize > 2:
        return FLOAT32
    capability = device.compute_capability
    table = LARGE if capability is None or capability in LARGE_CAPABILITIES else SMALL
    return table[min(width for width in table if width >= H)]
