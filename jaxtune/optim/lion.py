"""Lion, with its moment in 32 bits or in 8: bitsandbytes' `Lion` and `Lion8bit`."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtune.optim.blockwise import Context, Mask, Rule, blockwise
from jaxtune.optim.decay import decay_mask
from pallas_kernels.blockwise_quant import (
    Blockwise,
    dequantize_blockwise,
    quantize_blockwise,
)
from pallas_kernels.blockwise_quant.contract import zeros


def lion_8bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: int | float = 0.9,
    b2: int | float = 0.99,
    weight_decay: int | float = 0.0,
    *,
    mask: Mask | None = decay_mask,
    backend: str = "auto",
) -> optax.GradientTransformation:
    """Lion whose moment takes 1.016 bytes an element, in place of 4.

    p' = p (1 - lr wd) - lr sign(b1 m + (1 - b1) g);  m' = b2 m + (1 - b2) g, quantised again.
    Tensors of fewer than 4,096 elements keep a float32 moment.

    Args:
      learning_rate: Or a schedule of it by the updates made, 1/step.
      b1: Decay of the moment in the step.
      b2: Decay of the moment that is kept.
      weight_decay: Decoupled, 1/step.
      mask: From the parameters to a tree that is True where a leaf decays; None: everywhere.
      backend: Of quantisation: "auto", "xla", "triton" or "interpret".

    Returns:
      An optax transformation; its updates are float32, also of narrower parameters.

    Raises:
      ValueError: From `update`, for a state of other parameters.

    Source: https://arxiv.org/abs/2302.06675; bitsandbytes 0.50 `optim.Lion8bit`.
    """

    def step_32bit(
        p: Float[Array, "L N"], g: Float[Array, "L N"], m: Float[Array, "L N"], context: Context
    ) -> tuple[Float[Array, "L N"], Float[Array, "L N"]]:
        g, old = g.astype(jnp.float32), p.astype(jnp.float32)
        kept = (old * (1 - context.learning_rate * context.weight_decay)).astype(p.dtype)
        step = context.learning_rate * jnp.sign(b1 * m + (1 - b1) * g)
        new = (kept.astype(jnp.float32) - step).astype(p.dtype)
        return new.astype(jnp.float32) - old, b2 * m + (1 - b2) * g

    def step_8bit(
        p: Float[Array, "L N"], g: Float[Array, "L N"], state: Blockwise, context: Context
    ) -> tuple[Float[Array, "L N"], Blockwise]:
        m = dequantize_blockwise(state, p.shape[1], backend=backend)
        changed, m = step_32bit(p, g, m, context)
        return changed, quantize_blockwise(m, keeps_sign=True, backend=backend)

    rule = Rule(
        start_8bit=lambda rows, size: zeros(rows, size, signed=True),
        start_32bit=lambda rows, size: jnp.zeros((rows, size)),
        step_8bit=step_8bit,
        step_32bit=step_32bit,
    )
    return blockwise(rule, learning_rate, weight_decay, mask)


def lion_32bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: int | float = 0.9,
    b2: int | float = 0.99,
    weight_decay: int | float = 0.0,
    *,
    mask: Mask | None = decay_mask,
) -> optax.GradientTransformation:
    """Lion with a float32 moment: optax's, with the decay of transformers' groups.

    p' = p (1 - lr wd) - lr sign(b1 m + (1 - b1) g);  m' = b2 m + (1 - b2) g. The decay is that of
    the paper and of bitsandbytes' CPU and 8-bit code; its 32-bit CUDA kernel adds wd p to the
    gradient, which vanishes in the sign.

    Args:
      learning_rate: Or a schedule of it by the updates made, 1/step.
      b1: Decay of the moment in the step.
      b2: Decay of the moment that is kept.
      weight_decay: Decoupled, 1/step.
      mask: From the parameters to a tree that is True where a leaf decays; None: everywhere.

    Returns:
      An optax transformation.

    Source: https://arxiv.org/abs/2302.06675; bitsandbytes 0.50 `optim.Lion32bit`.
    """
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay, mask=mask)
