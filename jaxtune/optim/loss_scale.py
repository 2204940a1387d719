"""Dynamic loss scaling for float16: what torch's `GradScaler` does, as an optax transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

INITIAL = 2.0**16
GROWTH, BACKOFF = 2.0, 0.5


class LossScaleState(NamedTuple):
    """State of `dynamic_loss_scale`.

    Attributes:
      inner: The optimizer's.
      scale: What the next step's loss is multiplied by.
      clean: Steps without overflow since the scale last changed.
      skipped: Steps left out so far.
    """

    inner: Any
    scale: Float[Array, ""]
    clean: Int[Array, ""]
    skipped: Int[Array, ""]


def dynamic_loss_scale(
    tx: optax.GradientTransformation, growth_interval: int = 2000
) -> optax.GradientTransformation:
    """Leave out the steps whose gradient overflowed, and adapt the scale of the loss.

    overflow: no update, the optimizer's state (and the schedule in it) stays; scale <- scale / 2
    growth_interval steps without one: scale <- 2 scale

    Who computes the gradient reads `scale` from the state, multiplies the loss by it, and hands
    in the gradient divided by it again.

    Args:
      tx: The optimizer.
      growth_interval: Steps without overflow before the scale grows.

    Returns:
      One with the state `LossScaleState`.

    Source: torch `amp/grad_scaler.py`; transformers steps its scheduler only where the optimizer
      was stepped.
    """

    def init(params: optax.Params) -> LossScaleState:
        return LossScaleState(
            inner=tx.init(params),
            scale=jnp.float32(INITIAL),
            clean=jnp.int32(0),
            skipped=jnp.int32(0),
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, LossScaleState]:
        finite = all_finite(updates)
        made, inner = tx.update(updates, state.inner, params)
        clean = jnp.where(finite, state.clean + 1, 0)
        grown = clean == growth_interval
        factor = jnp.where(finite, jnp.where(grown, GROWTH, 1.0), BACKOFF)

        def chosen(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        state = LossScaleState(
            inner=chosen(inner, state.inner),
            scale=state.scale * factor,
            clean=jnp.where(grown, 0, clean),
            skipped=state.skipped + ~finite,
        )
        return chosen(made, jax.tree.map(jnp.zeros_like, made)), state

    return optax.GradientTransformation(init, update)


def all_finite(tree: Any) -> Array:
    """Whether no leaf holds a NaN or an infinity."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all() if leaves else jnp.array(True)
