"""Steps of float32 arithmetic that no compiler may merge or approximate."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.pallas_triton import instruction

SMALLEST = 2.0**-126  # in place of an absmax of 0, whose reciprocal is none; below it XLA reads 0


def reciprocal(x: Float[Array, "..."], *, compiled: bool = False) -> Float[Array, "..."]:
    """1 / x, correctly rounded, and no part of a division by what it multiplies.

    Args:
      x: float32; 0 is read as 2^-126.
      compiled: Inside a kernel that Triton compiles, whose own division is an approximation.
    """
    x = jnp.maximum(x, SMALLEST)
    if not compiled:
        return jax.lax.optimization_barrier(1 / x)
    return instruction("rcp.rn.f32", x)
