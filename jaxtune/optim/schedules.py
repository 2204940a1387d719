"""Learning-rate schedules under the names of `lr_scheduler_type`."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def linear(learning_rate: int | float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall in a line to 0 at the last step.

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

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.maximum(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return _after_warmup(learning_rate, warmup_steps, fall)


def cosine(learning_rate: int | float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall along half a cosine to 0 at the last step.

    lr(n) = lr * n / max(1, W) for n < W, else lr * max(0, (1 + cos(pi p)) / 2) with
    p = (n - W) / max(1, N - W).

    Args:
      learning_rate: Peak, 1/step.
      warmup_steps: W, steps.
      total_steps: N, steps.

    Returns:
      An optax schedule.

    Source: transformers `optimization.py`, `_get_cosine_schedule_with_warmup_lr_lambda` at its
    default of half a cycle.
    """

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return jnp.maximum(0.0, 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    return _after_warmup(learning_rate, warmup_steps, fall)


def constant_with_warmup(
    learning_rate: int | float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then stay."""
    del total_steps
    return _after_warmup(learning_rate, warmup_steps, jnp.ones_like)


def constant(learning_rate: int | float, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The same rate at every step; a warm-up is refused, as transformers ignores it silently."""
    del total_steps
    if warmup_steps:
        raise ValueError(
            "lr_scheduler_type='constant' has no warm-up; got one. "
            "Use lr_scheduler_type='constant_with_warmup', or warmup_steps=0."
        )
    return optax.constant_schedule(learning_rate)


def _after_warmup(
    learning_rate: int | float,
    warmup_steps: int,
    then: Callable[[Float[Array, ""]], Float[Array, ""]],
) -> optax.Schedule:
    """The rise lr * n / max(1, W) for n < W, then lr * then(n)."""

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)
        rise = step / max(1, warmup_steps)
        return learning_rate * jnp.where(step < warmup_steps, rise, then(step))

    return schedule


SCHEDULES: dict[str, Callable[[float, int, int], optax.Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
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
