"""Adafactor as transformers' trainer runs it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxtune.optim.blockwise import Mask
from jaxtune.optim.decay import decay_mask
from jaxtune.optim.tensors import Tensors, tensors_of

EPS = 1e-30
CLIP_THRESHOLD = 1.0
DECAY_RATE = -0.8


class AdafactorState(NamedTuple):
    """Steps made; by a leaf's name its mean squares of rows and of columns, or of elements."""

    count: Int[Array, ""]
    squares: dict[str, tuple[Float[Array, "..."], ...]]


def adafactor(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: int | float = 0.0,
    *,
    mask: Mask | None = decay_mask,
) -> optax.GradientTransformation:
    """Adafactor with the learning rate that is given, and no first moment.

    With b = 1 - t^-0.8 and the means of g^2 + 1e-30, tensor by tensor as PEFT has them:
    R = b R + (1 - b) mean over columns;  C = b C + (1 - b) mean over rows
    u = g / sqrt(R C / mean(R));  u is divided by max(1, RMS(u));  p' = p (1 - lr wd) - lr u.
    Of a vector V = b V + (1 - b) (g^2 + 1e-30), u = g / sqrt(V).

    Args:
      learning_rate: Or a schedule of it by the updates made, 1/step.
      weight_decay: 1/step.
      mask: From the parameters to a tree that is True where a leaf decays; None: everywhere.

    Returns:
      An optax transformation.

    Source: https://arxiv.org/abs/1804.04235; transformers `optimization.Adafactor` with
      scale_parameter=False and relative_step=False.
    """

    def init(params: Any) -> AdafactorState:
        squares = {
            name: _start(cut, _wide(leaf))
            for (name, cut), leaf in zip(
                tensors_of(params).items(), jax.tree.leaves(params), strict=True
            )
        }
        return AdafactorState(count=jnp.zeros((), jnp.int32), squares=squares)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdafactorState]:
        if params is None:
            raise ValueError("adafactor needs the parameters; got None. Pass `params`.")
        leaves, structure = jax.tree.flatten(params)
        gradients = structure.flatten_up_to(updates)
        decayed = [True] * len(leaves) if mask is None else structure.flatten_up_to(mask(params))
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = jnp.asarray(optax.safe_increment(state.count))
        changes, squares = [], {}
        for (name, cut), p, g, decays in zip(
            tensors_of(params).items(), leaves, gradients, decayed, strict=True
        ):
            wide = _wide(p)
            step, squares[name] = _step(cut, g.astype(wide), state.squares[name], count)
            decay = rate * weight_decay * p.astype(wide) if decays and weight_decay else 0.0
            changes.append((-decay - rate * step).astype(p.dtype))
        return structure.unflatten(changes), AdafactorState(count=count, squares=squares)

    return optax.GradientTransformation(init, update)


def _wide(leaf: Array) -> jnp.dtype:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _start(cut: Tensors, dtype: jnp.dtype) -> tuple[Float[Array, "..."], ...]:
    shape = (cut.layers or 1, *cut.shape)
    if len(cut.shape) < 2:
        return (jnp.zeros(shape, dtype),)
    return (jnp.zeros(shape[:-1], dtype), jnp.zeros((*shape[:-2], shape[-1]), dtype))


def _step(
    cut: Tensors, g: Float[Array, "..."], squares: tuple[Array, ...], count: Int[Array, ""]
) -> tuple[Float[Array, "..."], tuple[Array, ...]]:
    """U of a leaf, and its new mean squares."""
    stack = g.reshape(cut.layers or 1, *cut.shape)
    held = jnp.broadcast_to(_held(cut), stack.shape)
    kept = 1 - count.astype(g.dtype) ** DECAY_RATE
    new = jnp.where(held, stack**2 + EPS, 0)
    if len(squares) == 1:
        after = (kept * squares[0] + (1 - kept) * new,)
        scale = jax.lax.rsqrt(after[0])
    else:
        after = tuple(
            kept * old + (1 - kept) * _mean(new, held, axis)
            for old, axis in zip(squares, (-1, -2), strict=True)
        )
        rows, columns = after
        mean = _mean(rows, held.any(axis=-1), -1)[..., None]
        scale = jax.lax.rsqrt(rows / mean)[..., None] * jax.lax.rsqrt(columns)[..., None, :]
    u = jnp.where(held, stack * scale, 0)
    own = tuple(range(1, u.ndim))
    rms = jnp.sqrt(jnp.sum(u**2, axis=own, keepdims=True) / jnp.sum(held, axis=own, keepdims=True))
    u = jnp.where(held, u / jnp.maximum(rms / CLIP_THRESHOLD, 1), 0)
    return u.reshape(g.shape), after


def _held(cut: Tensors) -> Bool[Array, "..."]:
    """Where a layer's part of the leaf is its tensor, and no padding."""
    if cut.ranks is None:
        return jnp.ones((), bool)
    width = cut.shape[cut.rank_axis]
    below = jnp.arange(width) < jnp.asarray(cut.ranks)[:, None]  # [L, R]
    if len(cut.shape) == 1:
        return below
    return below[:, :, None] if cut.rank_axis == 0 else below[:, None, :]


def _mean(x: Float[Array, "..."], held: Bool[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Mean of what is held; the rest of x is 0 or left out."""
    count = jnp.maximum(jnp.sum(held, axis=axis), 1)
    return jnp.sum(jnp.where(held, x, 0), axis=axis) / count
