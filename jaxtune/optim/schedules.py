"""Learning-rate schedules under the names of `lr_scheduler_type`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxtune.optim.stable_decay import warmup_stable_decay

Number = int | float
Factor = Callable[[Float[Array, ""]], Float[Array, ""]]


def linear(learning_rate: Number, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall in a line to 0 at the last step.

    lr(n) = lr * n / max(1, W) for n < W, else lr * max(0, (N - n) / max(1, N - W)); n counts the
    updates already made, so the first update of a warm-up runs at 0.

    Args:
      learning_rate: Peak, 1/step.
      warmup_steps: W, steps.
      total_steps: N, steps.

    Returns:
      An optax schedule.

    Source: transformers `optimization.py`, as of all schedules here.
    """

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.maximum(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return _after_warmup(learning_rate, warmup_steps, fall)


def cosine(
    learning_rate: Number, warmup_steps: int, total_steps: int, *, num_cycles: Number = 0.5
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then follow a cosine, by default half a one to 0.

    lr(n) = lr * n / max(1, W) for n < W, else lr * max(0, (1 + cos(2 pi c p)) / 2) with
    p = (n - W) / max(1, N - W) and c cycles.
    """

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        progress = _progress(step, warmup_steps, total_steps)
        return jnp.maximum(0.0, 0.5 * (1 + jnp.cos(2 * jnp.pi * num_cycles * progress)))

    return _after_warmup(learning_rate, warmup_steps, fall)


def cosine_with_restarts(
    learning_rate: Number, warmup_steps: int, total_steps: int, *, num_cycles: int = 1
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall `num_cycles` times along half a cosine.

    lr(n) = lr * (1 + cos(pi (c p mod 1))) / 2 after the warm-up, 0 from p = 1 on.
    """

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        progress = _progress(step, warmup_steps, total_steps)
        # In whole steps, lest rounding moves a restart.
        place = (step - warmup_steps) * num_cycles % max(1, total_steps - warmup_steps)
        angle = jnp.pi * place / max(1, total_steps - warmup_steps)
        return jnp.where(progress >= 1, 0.0, 0.5 * (1 + jnp.cos(angle)))

    return _after_warmup(learning_rate, warmup_steps, fall)


def cosine_with_min_lr(
    learning_rate: Number,
    warmup_steps: int,
    total_steps: int,
    *,
    num_cycles: Number = 0.5,
    min_lr: Number | None = None,
    min_lr_rate: Number | None = None,
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then follow a cosine down to a least rate.

    lr(n) = lr * max(0, m + (1 - m) (1 + cos(2 pi c p)) / 2) with m = min_lr / lr or min_lr_rate.

    Raises:
      ValueError: Neither or both of `min_lr` and `min_lr_rate`.
    """
    of_peak = None if min_lr is None else min_lr / learning_rate
    given = [share for share in (min_lr_rate, of_peak) if share is not None]
    if len(given) != 1:
        raise ValueError(
            "'cosine_with_min_lr' needs one of `min_lr` and `min_lr_rate`; got "
            f"{min_lr} and {min_lr_rate}. Pass lr_scheduler_kwargs={{'min_lr_rate': 0.1}}."
        )
    (least,) = given

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        progress = _progress(step, warmup_steps, total_steps)
        part = 0.5 * (1 + jnp.cos(2 * jnp.pi * num_cycles * progress))
        return jnp.maximum(0.0, part * (1 - least) + least)

    return _after_warmup(learning_rate, warmup_steps, fall)


def polynomial(
    learning_rate: Number,
    warmup_steps: int,
    total_steps: int,
    *,
    lr_end: Number = 1e-7,
    power: Number = 1.0,
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall along a power of what remains to `lr_end`.

    lr(n) = (lr - lr_end) (1 - p)^power + lr_end after the warm-up, lr_end beyond the last step.

    Raises:
      ValueError: `lr_end` is not below the peak.
    """
    if lr_end >= learning_rate:
        raise ValueError(
            f"`lr_end` must be below `learning_rate`; got {lr_end} and {learning_rate}. "
            "Pass a smaller lr_scheduler_kwargs={'lr_end': ...}."
        )

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        remaining = jnp.clip(1 - _progress(step, warmup_steps, total_steps), 0.0, 1.0)
        return ((learning_rate - lr_end) * remaining**power + lr_end) / learning_rate

    return _after_warmup(learning_rate, warmup_steps, fall)


def inverse_sqrt(
    learning_rate: Number, warmup_steps: int, total_steps: int, *, timescale: int | None = None
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then fall as the root of the steps: sqrt(t / (n + t - W)).

    The timescale t is the warm-up unless it is given, or 10,000 without one.
    """
    del total_steps
    scale = timescale if timescale is not None else warmup_steps or 10_000

    def fall(step: Float[Array, ""]) -> Float[Array, ""]:
        # Before the warm-up's end the root may have no value; it is not taken there.
        return jnp.sqrt(scale / jnp.maximum(step + (scale - warmup_steps), 1.0))

    return _after_warmup(learning_rate, warmup_steps, fall)


def constant_with_warmup(
    learning_rate: Number, warmup_steps: int, total_steps: int
) -> optax.Schedule:
    """Rise from 0 over the warm-up, then stay."""
    del total_steps
    return _after_warmup(learning_rate, warmup_steps, jnp.ones_like)


def constant(learning_rate: Number, warmup_steps: int, total_steps: int) -> optax.Schedule:
    """The same rate at every step; a warm-up is refused, as transformers ignores it silently."""
    del total_steps
    if warmup_steps:
        raise ValueError(
            "lr_scheduler_type='constant' has no warm-up; got one. "
            "Use lr_scheduler_type='constant_with_warmup', or warmup_steps=0."
        )
    return optax.constant_schedule(learning_rate)


def _progress(step: Float[Array, ""], warmup_steps: int, total_steps: int) -> Float[Array, ""]:
    """Share of the steps after the warm-up that are behind."""
    return (step - warmup_steps) / max(1, total_steps - warmup_steps)


def _after_warmup(learning_rate: Number, warmup_steps: int, then: Factor) -> optax.Schedule:
    """The rise lr * n / max(1, W) for n < W, then lr * then(n)."""

    def schedule(count: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count, jnp.float32)
        rise = step / max(1, warmup_steps)
        return learning_rate * jnp.where(step < warmup_steps, rise, then(step))

    return schedule


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "cosine_with_min_lr": cosine_with_min_lr,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
}


def create_schedule(
    name: str,
    learning_rate: Number,
    warmup_steps: int,
    total_steps: int,
    options: Mapping[str, Any] | None = None,
) -> optax.Schedule:
    """The schedule of an `lr_scheduler_type`.

    Args:
      name: Of `SCHEDULES`.
      learning_rate: Peak, 1/step.
      warmup_steps: Steps.
      total_steps: Steps.
      options: `lr_scheduler_kwargs`: the keywords that the schedule has.

    Returns:
      An optax schedule: the rate of each update, by the updates already made.

    Raises:
      ValueError: No schedule has that name, or it has no such option, or lacks one that it needs.
    """
    if name not in SCHEDULES:
        raise ValueError(f"`lr_scheduler_type` must be one of {sorted(SCHEDULES)}; got {name!r}.")
    made = functools.partial(SCHEDULES[name], learning_rate, warmup_steps, total_steps)
    found = inspect.signature(SCHEDULES[name]).parameters.values()
    known = [one.name for one in found if one.kind is one.KEYWORD_ONLY]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise ValueError(
            f"`lr_scheduler_kwargs` of {name!r} may have {known or 'no keys'}; got {unknown}. "
            "Remove them, or choose another `lr_scheduler_type`."
        )
    return made(**(options or {}))
