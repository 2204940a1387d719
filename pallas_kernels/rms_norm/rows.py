"""The formulas of whole rows, in the wide dtype: the same in plain JAX and inside the kernel."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.rms_norm.contract import Options


def normalise(
    options: Options, D: int, dtype: DTypeLike, h: Float[Array, "... W"], weight: Float[Array, " W"]
) -> tuple[Float[Array, "... W"], Float[Array, "... 1"]]:
    """Norm of rows.

    Args:
      options: Static arguments.
      D: Width of a row; h holds 0 in the W - D columns beyond it.
      dtype: Of the result.
      h: Rows in float32 or wider, [..., W].
      weight: In its own dtype, [W].

    Returns:
      (y in `dtype`, rstd in h's dtype, [..., 1]).
    """
    rstd = lax.rsqrt(jnp.sum(h * h, axis=-1, keepdims=True) / D + options.eps)
    normed = _before_weight(options, h * rstd, dtype)
    return (normed * _factor(options, weight, dtype, h.dtype)).astype(dtype), rstd


def pull(
    options: Options,
    D: int,
    dtype: DTypeLike,
    h: Float[Array, "... W"],
    weight: Float[Array, " W"],
    rstd: Float[Array, "... 1"],
    dy: Float[Array, "... W"],
) -> Float[Array, "... W"]:
    """Gradient of rows: dx = rstd * (g - n * mean(g * n)), n = h * rstd, g = dy * weight.

    Args:
      options: Static arguments.
      D: As in `normalise`.
      dtype: Of x.
      h: As in `normalise`.
      weight: In its own dtype, [W].
      rstd: Of `normalise`.
      dy: Cotangent of y, in h's dtype; 0 beyond D.

    Returns:
      dx in h's dtype; the casts of the forward count as identities.
    """
    normed = h * rstd
    g = dy * _factor(options, weight, dtype, h.dtype)
    return rstd * (g - normed * (jnp.sum(g * normed, axis=-1, keepdims=True) / D))


def pull_weight(
    options: Options,
    dtype: DTypeLike,
    h: Float[Array, "... D"],
    rstd: Float[Array, "... 1"],
    dy: Float[Array, "... D"],
) -> Float[Array, " D"]:
    """Gradient of the weight: the sum over rows of dy * n, with n as the weight met it."""
    products = dy * _before_weight(options, h * rstd, dtype)
    return jnp.sum(products, axis=tuple(range(h.ndim - 1)))


def _before_weight(
    options: Options, normed: Float[Array, "... W"], dtype: DTypeLike
) -> Float[Array, "... W"]:
    """Llama's cast, which comes before the weight; Gemma has none here."""
    return normed if options.unit_offset else normed.astype(dtype).astype(normed.dtype)


def _factor(
    options: Options, weight: Float[Array, " W"], dtype: DTypeLike, wide: DTypeLike
) -> Float[Array, " W"]:
    """What the normalised value is multiplied by."""
    if options.unit_offset:
        return 1 + weight.astype(wide)
    return weight.astype(dtype).astype(wide)
