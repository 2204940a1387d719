"""The definition in float64: moments as real numbers, and no rounding but that to codes.

Tests only; needs `jax.enable_x64`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.adam_8bit.contract import Decays


def adam_ref(
    p: Float[Array, "L N"],
    g: Float[Array, "L N"],
    moments: tuple[Float[Array, "L N"], Float[Array, "L N"]],
    learning_rate: int | float,
    step: int,
    decays: Decays,
) -> tuple[Float[Array, "L N"], Float[Array, "L N"], Float[Array, "L N"]]:
    """p, m and v after a step whose moments are exact, by the formula of `adam_8bit`."""
    b1, b2 = decays.b1, decays.b2
    m = b1 * moments[0] + (1 - b1) * g
    v = b2 * moments[1] + (1 - b2) * g**2
    c1, c2 = 1 - b1**step, (1 - b2**step) ** 0.5
    p = p - learning_rate * (m / c1) / (jnp.sqrt(v) / c2 + decays.eps)
    return p * (1 - learning_rate * decays.weight_decay), m, v
