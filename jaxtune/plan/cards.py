"""GPUs by name: memory, and the rates that the time of a step is predicted from; imports no jax."""

import dataclasses
import re

GB = 10**9
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU.

    Attributes:
      name: For a person.
      memory: Bytes that a program can have of it.
      flops: FLOP/s of a large 16-bit product; None: unknown.
      bandwidth: Bytes/s of a copy, read and written; None: unknown.
      link: Bytes/s to the host and back, each; None: unknown.
      dtype: What it trains in.
      kernels: It has Triton and cuDNN's attention (compute capability 8.0).
    """

    name: str
    memory: float
    flops: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    dtype: str = "bfloat16"
    kernels: bool = True


# Datasheets say 989 TFLOP/s and 4.8 TB/s of an H200, which was measured at 684 and 4.3.
PRODUCTS, COPIES = 684 / 989, 4.3 / 4.8


def _card(name: str, gib: float, tera: float, terabytes: float, link: float) -> Card:
    """One whose rates are those of its datasheet by the shares that an H200 reaches."""
    return Card(
        name=name,
        memory=gib * GIB,
        flops=PRODUCTS * tera * 1e12,
        bandwidth=COPIES * terabytes * 1e12,
        link=link * 1e9,
    )


# L4 and T4 hold their clocks by power: 55 and 35 TFLOP/s of 121 and 65 are assumed, not measured.
CARDS = {
    "t4": dataclasses.replace(
        _card("T4, 16 GB", 14.7, 65.0, 0.32, 12.0), flops=35e12, dtype="float16", kernels=False
    ),
    "l4": dataclasses.replace(_card("L4, 24 GB", 22.0, 121.0, 0.30, 24.0), flops=55e12),
    "a100": _card("A100, 80 GB", 79.2, 312.0, 2.04, 24.0),
    "h100": _card("H100, 80 GB", 79.2, 989.0, 3.35, 50.0),
    "h200": _card("H200, 141 GB", 139.8, 989.0, 4.80, 50.0),
}


def card_of(name: str) -> Card | None:
    """A card by its name, or by its memory ("24GB"); None for another name.

    Of memory a twentieth is the driver's.
    """
    found = re.fullmatch(r"(\d+)\s*(gb|gib)", name.strip().lower())
    if found:
        size = int(found[1])
        return Card(name=f"GPU of {size} GB", memory=0.95 * size * GIB) if size else None
    return CARDS.get(name.strip().lower())
