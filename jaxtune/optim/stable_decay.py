"""The schedule that stays at its peak for a while."""

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

SHAPES = ("linear", "cosine", "1-sqrt")


def warmup_stable_decay(  # noqa: PLR0913  (the options of transformers' schedule)
    learning_rate: int | float,
    warmup_steps: int,
    total_steps: int,
    *,
    num_decay_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: int | float = 0,
    num_cycles: int | float = 0.5,
) -> optax.Schedule:
    """Rise over the warm-up, stay at the peak, and fall over the last steps.

    lr(n) = lr * (m + (1 - m) rise(n / W)) for n < W, lr for the stable steps, then
    lr * (m + (1 - m) fall(p)) over the decay's steps, and lr * m after them; m = min_lr_ratio.

    Args:
      learning_rate: Peak, 1/step.
      warmup_steps: W, steps.
      total_steps: N, steps.
      num_decay_steps: Of the fall; must be given.
      num_stable_steps: At the peak; None: all that neither rise nor fall takes.
      warmup_type: "linear", "cosine" or "1-sqrt".
      decay_type: Likewise.
      min_lr_ratio: Least rate, as a share of the peak.
      num_cycles: Of the cosine of the fall; a half ends at the least rate.

    Returns:
      An optax schedule.

    Raises:
      ValueError: No `num_decay_steps`, or another shape.

    Source: transformers `optimization.py`, `get_wsd_schedule`.
    """
    if num_decay_steps is None:
        raise ValueError(
            "'warmup_stable_decay' needs `num_decay_steps`; got none. "
            "Pass lr_scheduler_kwargs={'num_decay_steps': ...}."
        )
    for name, shape in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if shape not in SHAPES:
            raise ValueError(f"`{name}` must be one of {SHAPES}; got {shape!r}.")
    stable = num_stable_steps
    if stable is None:
        stable = total_steps - warmup_steps - num_decay_steps
    peak_end = warmup_steps + stable

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)
        rise = _shape(warmup_type, 1 - step / max(1, warmup_steps), 0.5)
        fall = _shape(decay_type, (step - peak_end) / max(1, num_decay_steps), num_cycles)
        span = 1 - min_lr_ratio
        factor = jnp.where(
            step < warmup_steps,
            rise * span + min_lr_ratio,
            jnp.where(
                step < peak_end,
                1.0,
                jnp.where(
                    step < peak_end + num_decay_steps, fall * span + min_lr_ratio, min_lr_ratio
                ),
            ),
        )
        return learning_rate * jnp.maximum(0.0, factor)

    return schedule


def _shape(name: str, p: Float[Array, ""], num_cycles: int | float) -> Float[Array, ""]:
    """From 1 at p = 0 to 0 at p = 1."""
    if name == "linear":
        return 1 - p
    if name == "cosine":
        return 0.5 * (1 + jnp.cos(2 * jnp.pi * num_cycles * p))
    return 1 - jnp.sqrt(jnp.maximum(p, 0.0))
