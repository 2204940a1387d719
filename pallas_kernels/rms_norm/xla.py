"""The norm in plain JAX, for every device."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.rms_norm.contract import Options, Residuals, Wanted
from pallas_kernels.rms_norm.rows import normalise, pull, pull_weight


def forward(
    options: Options,
    x: Float[Array, "... D"],
    residual: Float[Array, "... D"] | None,
    weight: Float[Array, " D"],
) -> tuple[tuple[Float[Array, "... D"], Float[Array, "... D"]], Residuals]:
    """Norm of the stream.

    Args:
      options: Static arguments.
      x: [..., D].
      residual: Added to x first; None adds nothing.
      weight: [D].

    Returns:
      ((y, h), residuals), h = x + residual in x's dtype.
    """
    h = x if residual is None else x + residual
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y, rstd = normalise(options, x.shape[-1], x.dtype, h.astype(wide), weight)
    return (y, h), Residuals(h, weight, rstd[..., 0])


def backward(
    options: Options,
    wanted: Wanted,
    residuals: Residuals,
    dy: Float[Array, "... D"],
    dh: Float[Array, "... D"] | None,
) -> tuple[Float[Array, "... D"], Float[Array, " D"] | None]:
    """Gradients of the stream and of the weight.

    Args:
      options: Static arguments.
      wanted: Whether to make the weight's.
      residuals: Of the forward.
      dy: Cotangent of y.
      dh: Cotangent of h, added before the one cast; None: there is none.

    Returns:
      (dx in x's dtype, which is the residual's too; d_weight in the weight's dtype, or None).
    """
    h, weight, rstd = residuals
    wide = rstd.dtype
    dx = pull(
        options, h.shape[-1], h.dtype, h.astype(wide), weight, rstd[..., None], dy.astype(wide)
    )
    dx = dx if dh is None else dx + dh.astype(wide)
    return dx.astype(h.dtype), weight_gradient(options, wanted, residuals, dy)


def weight_gradient(
    options: Options, wanted: Wanted, residuals: Residuals, dy: Float[Array, "... D"]
) -> Float[Array, " D"] | None:
    """Gradient of the weight, summed in float32 or wider; None where it is not wanted."""
    if not wanted.weight:
        return None
    h, weight, rstd = residuals
    wide = rstd.dtype
    total = pull_weight(options, h.dtype, h.astype(wide), rstd[..., None], dy.astype(wide))
    return total.astype(weight.dtype)


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward, backward=backward)
