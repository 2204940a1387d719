"""The definition: the nearest of 256 values by trying them all. Tests only."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.blockwise_quant.contract import BLOCK, Blockwise
from pallas_kernels.blockwise_quant.rounding import SMALLEST
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLES, MIDDLES


def quantize_blockwise_ref(x: Float[Array, "L N"], *, signed: bool) -> Blockwise:
    """Codes by counting the middles below each value; eager, so every operation rounds by itself.

    A tie counts as below if the code under it is odd, so it goes to the even one.
    """
    wide = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -x.shape[1] % BLOCK)))
    blocks = wide.reshape(x.shape[0], -1, BLOCK)
    absmax = jnp.abs(blocks).max(axis=2)
    scaled = (blocks * (1 / jnp.maximum(absmax, SMALLEST))[..., None])[..., None]
    middles = jnp.asarray(MIDDLES[signed], jnp.float32)
    odd = jnp.arange(255) % 2 == 1
    codes = ((scaled > middles) | ((scaled == middles) & odd)).sum(axis=-1)
    return Blockwise(codes=codes.astype(jnp.uint8), absmax=absmax, signed=signed)


def dequantize_blockwise_ref(blocks: Blockwise, size: int) -> Float[Array, "L N"]:
    """Values in float32, by the formula of `Blockwise`."""
    table = jnp.asarray(DYNAMIC_TABLES[blocks.signed], jnp.float32)
    values = table[blocks.codes] * blocks.absmax[..., None]
    return values.reshape(values.shape[0], -1)[:, :size]
