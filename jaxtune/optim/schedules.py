"""Learning-rate schedules under the names of `lr_scheduler_type`."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def linear(learning_rate: int | float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall to 0 at the last step.

    lr(n) = lr * n / max(1, W) for n < W, else lr * max(0, (N - n) / max(1, N - W)); n counts the
    updates already made, so the first update of a warm-up runs at 0.

    Args:
      learning_rate: Peak, 1/step.
      warmup_steps: W, steps.
      total_steps: N, steps.

    Returns:
      An optax schedule.

    Source: transformers `optimization.py`, `_get_linear_schedule_with_warmup_lr_lambda`.
    """

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)
        rise = step / max(1, warmup_steps)
        fall = jnp.maximum(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
        return learning_rate * jnp.where(step < warmup_steps, rise, fall)

    return schedule


def constant(learning_rate: int | float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The same rate at every step; a warm-up is refused, as transformers ignores it silently."""
    if warmup_steps:
        raise ValueError(
            "lr_scheduler_type='constant' has no warm-up; got "
            f"warmup_steps={warmup_steps} of {total_steps}. Use 'linear', or no warm-up."
        )
    return optax.constant_schedule(learning_rate)


SCHEDULES: dict[str, Callable[[float, int, int], optax.Schedule]] = {
    "linear": linear,
    "constant": constant,
}


def create_schedule(
    name: str, learning_rate: int | float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """The schedule of an `lr_scheduler_type`.

    Raises:
      ValueError: No schedule has that name.
    """
    if name not in SCHEDULES:
        raise ValueError(f"`lr_scheduler_type` must be one of {sorted(SCHEDULES)}; got {name!r}.")
    return SCHEDULES[name](learning_rate, warmup_steps, total_steps)
