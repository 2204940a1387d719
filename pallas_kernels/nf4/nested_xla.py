"""The 8-bit codes of absmax in plain JAX, for every device; bit-equal to the kernel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.nf4.quantize_xla import SMALLEST
from pallas_kernels.nf4.tables import DYNAMIC_TABLE, midpoints

BLOCK = 256  # values of a nested block
MIDDLES = midpoints(DYNAMIC_TABLE)


def forward(
    absmax: Float[Array, " N"], offset: Float[Array, ""]
) -> tuple[UInt8[Array, " N"], Float[Array, " _"]]:
    """Codes, and the scale of each block.

    Args:
      absmax: float32, [N].
      offset: Their mean.

    Returns:
      (codes [N], scales [ceil(N / 256)]).
    """
    padding = -absmax.size % BLOCK
    x = jnp.pad(absmax - offset, (0, padding)).reshape(-1, BLOCK)
    scale = jnp.abs(x).max(axis=1)
    # An optimisation barrier, lest the reciprocal and the product become a division.
    inverse = jax.lax.optimization_barrier(1 / jnp.maximum(scale, SMALLEST))
    middles = jnp.asarray(MIDDLES, jnp.float32)
    code = nearest(x * inverse[:, None], lambda index: middles[index])
    return code.astype(jnp.uint8).reshape(-1)[: absmax.size], scale


def nearest(
    x: Float[Array, "..."], middle_of: Callable[[Int[Array, "..."]], Float[Array, "..."]]
) -> Int[Array, "..."]:
    """Index of the nearest of the dynamic type's values; eight halvings, each a table look-up.

    Args:
      x: In [-1, 1].
      middle_of: Looks up the middle of the values c and c + 1.

    Returns:
      The codes.
    """
    code = jnp.zeros(x.shape, jnp.int32)
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        # A tie is the even one's.
        above = code + step
        middle = middle_of(above - 1)
        code = jnp.where((x > middle) | ((x == middle) & (above % 2 == 0)), above, code)
    return code


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward)
