"""The public op: argument checks and the choice of the backend."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.adam_8bit import triton, xla
from pallas_kernels.adam_8bit.contract import Decays, Moments
from pallas_kernels.blockwise_quant.api import check_blocks
from pallas_kernels.dispatch import Backend, Problem, choose, current_device

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)


def adam_8bit(
    p: Float[Array, "L N"],
    g: Float[Array, "_ _"],
    moments: Moments,
    *,
    learning_rate: int | float | Float[Array, ""],
    step: int | Int[Array, ""],
    decays: Decays,
    backend: str = "auto",
) -> tuple[Float[Array, "L N"], Moments]:
    """One step of AdamW on L tensors whose moments are held in 8 bits.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  c1 = 1 - b1^t;  c2 = sqrt(1 - b2^t)
    p' = (p - lr c2 / c1 * m / (sqrt(v) + c2 eps)) (1 - lr wd)

    p' comes of m and v as they are before they are quantised again. Where g is not finite, both
    become 0 and p stays. A negative m is never quantised to 0.

    It has no gradient. The gradient and the old codes are written over where the caller is done
    with them.

    Args:
      p: L parameters of N elements each, float32, bfloat16 or float16.
      g: Their gradients.
      moments: Before the step; `zero_moments(L, N)` before the first.
      learning_rate: lr, 1/step; may be traced.
      step: t, 1 for the first; may be traced.
      decays: The static numbers.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      (p' - p in float32, the moments after the step).

    Raises:
      ValueError: The arrays do not fit each other.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2110.02861; bitsandbytes 0.50 `csrc/kernels.cu`
      `kOptimizerStatic8bit2StateBlockwise` (it divides by absmax approximately, where this
      multiplies by the reciprocal).
    """
    if g.shape != p.shape:
        raise ValueError(f"`g` must have the shape of `p`, {p.shape}; got {g.shape}.")
    rows, size = p.shape
    check_blocks("moments.first", moments.first, rows, size)
    check_blocks("moments.second", moments.second, rows, size)
    problem = Problem(
        op="adam_8bit",
        device=current_device(),
        dtype=str(p.dtype),
        sizes={"L": rows, "N": size},
    )
    scalars = decays.scalars(jnp.asarray(learning_rate, jnp.float32), jnp.asarray(step, jnp.int32))
    return choose(backend, BACKENDS, problem).forward(p, g, moments, scalars, decays)
