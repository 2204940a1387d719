"""A product that is rounded before it is added to."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

SIGN = -(2**31)


def rounded_product(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product x y, out of reach of a fused multiply-add.

    bitsandbytes multiplies in one kernel and adds in the next. A compiler would fuse the two, and
    sees through barriers and casts, but not through an exclusive or with a bit that it cannot know.

    Args:
      x: float32.
      y: float32, never negative: its sign bit, which is 0, is the one.

    Returns:
      The product, rounded to float32.
    """
    sign = lax.bitcast_convert_type(y, jnp.int32) & SIGN
    bits = lax.bitcast_convert_type(x * y, jnp.int32) ^ sign
    return lax.bitcast_convert_type(bits, jnp.float32)
