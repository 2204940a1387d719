"""The 4-bit stack that callers hold and backends read."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels.pytree import pytree


@pytree(data=("absmax", "table", "offset"), meta=("block",))
@dataclass(frozen=True, kw_only=True)
class NestedAbsmax:
    """How the absmax of a stack, quantised to 8 bits, are read.

    Attributes:
      absmax: Of each nested block, [L, ceil(blocks / block)], float32, never negative.
      table: Values of the 256 codes, [256], float32.
      offset: Mean of a weight's absmax, [L], float32.
      block: Blocks of a nested block, a power of two.
    """

    absmax: Float[Array, "L _"]
    table: Float[Array, "256"]
    offset: Float[Array, " L"]
    block: int = 256


class Beside(NamedTuple):
    """E columns that follow the weights of a group in one matrix: each weight's own, and zeros.

    Attributes:
      stack: Of all layers, [L, O, R], of the matrix's dtype; the rows of the weights follow each
        other.
      layer: Index into it.
      first_row: That of the group's first weight.
      columns: For each weight, where its R columns begin; those beyond E are left out.
      width: E.
    """

    stack: Float[Array, "L O R"]
    layer: Int[Array, ""]
    first_row: int
    columns: tuple[int, ...]
    width: int


@pytree(data=("codes", "absmax", "table", "nested"), meta=("matrix", "dtype", "block"))
@dataclass(frozen=True, kw_only=True)
class NF4:
    """A stack of L weights [O, I] of 4 bits each, with bitsandbytes' values in an order of our own.

    Element i of the flat row-major weight (n = O * I, C = ceil(n / 2)) is the high nibble of
    codes[i] for i < C, and the low nibble of codes[i - C] beyond: two contiguous halves, where
    bitsandbytes pairs neighbours. With b = i // block:

    absmax_b = absmax[b], or nested.table[absmax[b]] * nested.absmax[b // nested.block] + offset
    weight_i = dtype(table[code_i] * absmax_b), in float32 up to the cast

    Attributes:
      codes: [L, C].
      absmax: Largest magnitude of each block of `block` elements, [L, ceil(n / block)]; uint8
        where it is quantised itself, else float32.
      table: Values of the 16 codes, [16], float32; NF4's, or those that a file brings (FP4).
      nested: How a quantised absmax is read; None: it is plain.
      matrix: (O, I).
      dtype: Name of the dtype that a value is rounded to, whatever it is computed in afterwards.
      block: Elements of a block, a power of two.

    Source: https://arxiv.org/abs/2305.14314, section 3; bitsandbytes 0.50 `functional.QuantState`.
    """

    codes: UInt8[Array, "L C"]
    absmax: UInt8[Array, "L _"] | Float[Array, "L _"]
    table: Float[Array, "16"]
    nested: NestedAbsmax | None
    matrix: tuple[int, int]
    dtype: str
    block: int = 64

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, O, I): that of the weights, as if they were dense."""
        return (self.codes.shape[0], *self.matrix)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(self))


def from_pairs(pairs: UInt8[Array, " C"]) -> UInt8[Array, " C"]:
    """Turn bitsandbytes' order of nibbles into ours.

    Args:
      pairs: Byte k holds elements 2k (high nibble) and 2k + 1, [C].

    Returns:
      Byte k holds elements k (high nibble) and C + k, [C].
    """
    return pack(jnp.stack([pairs >> 4, pairs & 15], axis=-1).reshape(-1))


def to_pairs(codes: UInt8[Array, " C"]) -> UInt8[Array, " C"]:
    """Turn our order of nibbles into bitsandbytes'; undoes `from_pairs`.

    Args:
      codes: Byte k holds elements k (high nibble) and C + k, [C].

    Returns:
      Byte k holds elements 2k (high nibble) and 2k + 1, [C].
    """
    high, low = jnp.concatenate([codes >> 4, codes & 15]).reshape(-1, 2).T
    return (high << 4) | low


def pack(flat: UInt8[Array, " N"]) -> UInt8[Array, " C"]:
    """Codes of the flat weight, an even number of them, as bytes of our order."""
    high, low = flat.reshape(2, -1)
    return (high << 4) | low
