"""The step in plain JAX, for every device."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.adam_8bit.contract import Decays, Moments
from pallas_kernels.adam_8bit.formula import change, next_moments
from pallas_kernels.blockwise_quant import xla as blockwise
from pallas_kernels.dispatch import Backend, serves_all


def forward(
    p: Float[Array, "L N"],
    g: Float[Array, "L N"],
    moments: Moments,
    scalars: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    decays: Decays,
) -> tuple[Float[Array, "L N"], Moments]:
    """One step.

    Args:
      p: Parameters.
      g: Gradients.
      moments: Before the step.
      scalars: From `Decays.scalars`.
      decays: Static numbers.

    Returns:
      (what to add to p in float32, the moments after the step).
    """
    size = p.shape[1]
    first = blockwise.dequantize(moments.first, size, jnp.float32)
    second = blockwise.dequantize(moments.second, size, jnp.float32)
    moved = next_moments(g.astype(jnp.float32), first, second, decays.b1, decays.b2)
    after = Moments(
        first=blockwise.quantize(moved[0], signed=True, keeps_sign=True),
        second=blockwise.quantize(moved[1], signed=False),
    )
    return change(p, moved, scalars, decays=decays.weight_decay != 0), after


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward)
