"""Both ways in plain JAX, for every device; bit-equal to the kernels."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.blockwise_quant.contract import BLOCK, Blockwise
from pallas_kernels.blockwise_quant.rounding import reciprocal
from pallas_kernels.blockwise_quant.search import keep_sign, nearest
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLES, MIDDLES
from pallas_kernels.dispatch import Backend, serves_all


def quantize(x: Float[Array, "L N"], *, signed: bool, keeps_sign: bool = False) -> Blockwise:
    """Codes and absmax of each row.

    Args:
      x: [L, N].
      signed: Which of the two types.
      keeps_sign: See `keep_sign`.

    Returns:
      The blocks.
    """
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -x.shape[1] % BLOCK)))
    blocks = wide.reshape(x.shape[0], -1, BLOCK)
    # A maximum may drop a NaN; an infinity it keeps.
    absmax = jnp.where(blocks == blocks, jnp.abs(blocks), jnp.inf).max(axis=2)
    middles = jnp.asarray(MIDDLES[signed], jnp.float32)
    scaled = blocks * reciprocal(absmax)[..., None]
    code = nearest(scaled, lambda index: middles[index], signed=signed)
    code = keep_sign(code, scaled) if keeps_sign else code
    return Blockwise(codes=code.astype(jnp.uint8), absmax=absmax, signed=signed)


def dequantize(blocks: Blockwise, size: int, dtype: DTypeLike) -> Float[Array, "L N"]:
    """Values of each row.

    Args:
      blocks: The codes.
      size: N.
      dtype: Of the result.

    Returns:
      [L, N].
    """
    table = jnp.asarray(DYNAMIC_TABLES[blocks.signed], jnp.float32)
    values = table[blocks.codes.astype(jnp.int32)] * blocks.absmax[..., None]
    return values.reshape(values.shape[0], -1)[:, :size].astype(dtype)


QUANTIZE = Backend(name="xla", refuse=serves_all, forward=quantize)
DEQUANTIZE = Backend(name="xla", refuse=serves_all, forward=dequantize)
