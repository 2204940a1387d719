"""AdamW with its moments in 8 bits: bitsandbytes' `AdamW8bit`."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtune.optim.blockwise import Context, Mask, Rule, blockwise
from jaxtune.optim.decay import decay_mask
from pallas_kernels.adam_8bit import Decays, Moments, adam_8bit, zero_moments
from pallas_kernels.adam_8bit.formula import change, next_moments


def adamw_8bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: int | float = 0.9,
    b2: int | float = 0.999,
    eps: int | float = 1e-8,
    weight_decay: int | float = 0.0,
    *,
    mask: Mask | None = decay_mask,
    backend: str = "auto",
) -> optax.GradientTransformation:
    """AdamW whose moments take 2.03 bytes an element, in place of 8.

    p' = (p - lr c2 / c1 * m / (sqrt(v) + c2 eps)) (1 - lr wd), with m and v as they are before
    they are quantised again; see `pallas_kernels.adam_8bit`. Tensors of fewer than 4,096 elements
    keep float32 moments.

    Args:
      learning_rate: Or a schedule of it by the updates made, 1/step.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled, 1/step.
      mask: From the parameters to a tree that is True where a leaf decays; None: everywhere.
      backend: Of the 8-bit step: "auto", "xla", "triton" or "interpret".

    Returns:
      An optax transformation; its updates are float32, also of narrower parameters.

    Raises:
      ValueError: From `update`, for a state of other parameters.

    Source: https://arxiv.org/abs/2110.02861; bitsandbytes 0.50 `optim.AdamW8bit`.
    """

    def decays(context: Context) -> Decays:
        return Decays(b1=b1, b2=b2, eps=eps, weight_decay=context.weight_decay)

    def step_8bit(
        p: Float[Array, "L N"], g: Float[Array, "L N"], state: Moments, context: Context
    ) -> tuple[Float[Array, "L N"], Moments]:
        return adam_8bit(
            p,
            g,
            state,
            learning_rate=context.learning_rate,
            step=context.step,
            decays=decays(context),
            backend=backend,
        )

    def step_32bit(
        p: Float[Array, "L N"],
        g: Float[Array, "L N"],
        state: tuple[Float[Array, "L N"], Float[Array, "L N"]],
        context: Context,
    ) -> tuple[Float[Array, "L N"], tuple[Float[Array, "L N"], Float[Array, "L N"]]]:
        moved = next_moments(g.astype(jnp.float32), *state, b1, b2)
        scalars = decays(context).scalars(context.learning_rate, context.step)
        return change(p, moved, scalars, decays=context.weight_decay != 0), moved[:2]

    rule = Rule(
        start_8bit=zero_moments,
        start_32bit=lambda rows, size: (jnp.zeros((rows, size)), jnp.zeros((rows, size))),
        step_8bit=step_8bit,
        step_32bit=step_32bit,
    )
    return blockwise(rule, learning_rate, weight_decay, mask)
