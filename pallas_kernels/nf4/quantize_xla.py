"""Quantisation in plain JAX, for every device; bit-equal to the kernel."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from pallas_kernels.blockwise_quant.rounding import reciprocal
from pallas_kernels.blockwise_quant.tables import midpoints
from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.nf4.contract import pack
from pallas_kernels.nf4.tables import NF4_TABLE

THRESHOLDS = midpoints(NF4_TABLE)


def forward(
    weight: Float[Array, " N"], block: int
) -> tuple[UInt8[Array, " C"], Float[Array, " _"]]:
    """Codes in our order, and absmax.

    Args:
      weight: Flat, [n].
      block: Elements of a block.

    Returns:
      (codes [ceil(n / 2)], absmax [ceil(n / block)] in float32).
    """
    padding = -weight.size % max(block, 2)
    x = jnp.pad(weight, (0, padding)).astype(jnp.float32).reshape(-1, block)
    magnitude = jnp.abs(x)
    # A maximum may drop a NaN; an infinity it keeps.
    absmax = jnp.where(jnp.isnan(magnitude), jnp.inf, magnitude).max(axis=1)
    scaled = (x * reciprocal(absmax)[:, None]).reshape(-1)[: weight.size + weight.size % 2]
    return pack(nearest(scaled)), absmax


def nearest(scaled: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Index of the nearest value of NF4, the lower one of two equally near."""
    code = jnp.zeros(scaled.shape, jnp.int32)
    for middle in THRESHOLDS:
        code += scaled > middle
    return code.astype(jnp.uint8)


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward)
