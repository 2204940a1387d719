"""8-bit blocks that callers hold and backends read and write."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from pallas_kernels.blockwise_quant.tables import ZERO_CODES
from pallas_kernels.pytree import pytree

BLOCK = 256


@pytree(data=("codes", "absmax"), meta=("signed",))
@dataclass(frozen=True, kw_only=True)
class Blockwise:
    """L rows of N values in 8 bits each; blocks of 256 begin anew in every row.

    x_i = table[codes_i] * absmax_{i // 256}, in float32. What fills the last block up is 0.

    Attributes:
      codes: [L, ceil(N / 256), 256].
      absmax: Largest magnitude of each block, [L, ceil(N / 256)], float32.
      signed: Whether the table is bitsandbytes' signed dynamic map, or the unsigned one.

    Source: https://arxiv.org/abs/2110.02861, section 2; bitsandbytes 0.50 `QuantState`.
    """

    codes: UInt8[Array, "L _ 256"]
    absmax: Float[Array, "L _"]
    signed: bool

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return math.prod(self.codes.shape) + 4 * math.prod(self.absmax.shape)


def zeros(rows: int, size: int, *, signed: bool) -> Blockwise:
    """Rows of zeros, as an optimizer's state begins."""
    blocks = -(-size // BLOCK)
    return Blockwise(
        codes=jnp.full((rows, blocks, BLOCK), ZERO_CODES[signed], jnp.uint8),
        absmax=jnp.zeros((rows, blocks), jnp.float32),
        signed=signed,
    )
