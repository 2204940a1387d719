"""One element's step; the backends and the 32-bit states of small tensors share it."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.blockwise_quant.tables import single


def next_moments(
    g: Float[Array, "..."],
    m: Float[Array, "..."],
    v: Float[Array, "..."],
    b1: int | float,
    b2: int | float,
) -> tuple[Float[Array, "..."], Float[Array, "..."], Bool[Array, "..."]]:
    """M = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2; both 0 where g is not finite.

    Args:
      g: Gradient, float32.
      m: First moment, float32.
      v: Second moment, float32.
      b1: Decay of m.
      b2: Decay of v.

    Returns:
      (m, v, where g is finite).
    """
    b1, b2 = single(b1), single(b2)
    finite = jnp.isfinite(g)
    m = m * b1 + single(1 - b1) * g
    v = v * b2 + single(1 - b2) * g * g
    return jnp.where(finite, m, 0.0), jnp.where(finite, v, 0.0), finite


def change(
    p: Float[Array, "..."],
    moments: tuple[Float[Array, "..."], Float[Array, "..."], Bool[Array, "..."]],
    scalars: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    *,
    decays: bool,
) -> Float[Array, "..."]:
    """What to add to p: it takes the step, is rounded to its dtype, and then decays.

    p' = (p - lr c2 / c1 * m / (sqrt(v) + c2 eps)) (1 - lr wd); where g was not finite p stays.

    Args:
      p: Parameter.
      moments: From `next_moments`.
      scalars: From `Decays.scalars`.
      decays: Whether the weight decay is not 0.

    Returns:
      p' - p in float32; exact where p' is within a factor of two of p, or p is 0.
    """
    m, v, finite = moments
    rate, floor, keep = scalars
    old = p.astype(jnp.float32)
    new = (old + rate * (m / (jnp.sqrt(v) + floor))).astype(p.dtype)
    if decays:
        new = (new.astype(jnp.float32) * keep).astype(p.dtype)
    return jnp.where(finite, new.astype(jnp.float32) - old, 0.0)
