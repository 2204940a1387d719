"""The formulas of single elements, in the wide dtype: the same in plain JAX and inside the kernel.

Both activations are a = e * sigmoid(q(e)): silu with q(e) = e, and gelu's tanh form with
q(e) = 2 sqrt(2 / pi) (e + 0.044715 e^3), because (1 + tanh(z)) / 2 = sigmoid(2 z).
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.glu.contract import Options

SLOPE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


def gated(
    options: Options, dtype: DTypeLike, gate: Float[Array, "..."], up: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The product y = cast(cast(a(gate)) * up).

    Args:
      options: Static arguments.
      dtype: Of the result.
      gate: In float32 or wider.
      up: Likewise.

    Returns:
      y in `dtype`.
    """
    activated = gate * jax.nn.sigmoid(_argument(options, gate))
    return (activated.astype(dtype).astype(gate.dtype) * up).astype(dtype)


def pull(
    options: Options, gate: Float[Array, "..."], up: Float[Array, "..."], dy: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Gradients: d_gate = dy * up * a'(gate), d_up = dy * a(gate).

    a'(e) = s + e * s * (1 - s) * q'(e),  s = sigmoid(q(e)); the casts of the forward count as
    identities.

    Args:
      options: Static arguments.
      gate: In float32 or wider.
      up: Likewise.
      dy: Cotangent of y, likewise.

    Returns:
      (d_gate, d_up), of the same dtype.
    """
    q = _argument(options, gate)
    # From exp(-|q|), so that s (1 - s) has no 1 - s, which would cancel where s is near 1.
    small = jnp.exp(-jnp.abs(q))
    large = 1 / (1 + small)
    s, steepness = jnp.where(q >= 0, large, small * large), small * large * large
    slope = 1 if options.activation == "silu" else SLOPE * (1 + 3 * CUBIC * gate * gate)
    return dy * up * (s + gate * steepness * slope), dy * gate * s


def _argument(options: Options, gate: Float[Array, "..."]) -> Float[Array, "..."]:
    """Argument of the sigmoid, q(gate)."""
    if options.activation == "silu":
        return gate
    return SLOPE * (gate + CUBIC * gate * gate * gate)
