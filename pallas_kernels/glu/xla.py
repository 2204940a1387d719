"""The gated activation in plain JAX, for every device."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.glu.contract import Options, Residuals
from pallas_kernels.glu.elements import gated, pull


def forward(
    options: Options, gate: Float[Array, "..."], up: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Residuals]:
    """The gated values.

    Args:
      options: Static arguments.
      gate: What the activation is taken of.
      up: What it multiplies.

    Returns:
      (y in gate's dtype, residuals).
    """
    wide = jnp.promote_types(gate.dtype, jnp.float32)
    y = gated(options, gate.dtype, gate.astype(wide), up.astype(wide))
    return y, Residuals(gate, up)


def backward(
    options: Options, residuals: Residuals, dy: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Gradients by gate and up, in their dtype.

    Args:
      options: Static arguments.
      residuals: Of the forward.
      dy: Cotangent of y.

    Returns:
      (d_gate, d_up).
    """
    gate, up = residuals
    wide = jnp.promote_types(gate.dtype, jnp.float32)
    d_gate, d_up = pull(options, gate.astype(wide), up.astype(wide), dy.astype(wide))
    return d_gate.astype(gate.dtype), d_up.astype(gate.dtype)


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward, backward=backward)
