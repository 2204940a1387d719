"""From logits to the distribution that a token is drawn from, in transformers' order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.pytree import pytree

Scalar = jax.Array | np.floating | float


@pytree(
    data=("key", "temperature", "top_p", "min_p", "repetition_penalty"),
    meta=("top_k",),
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Warp:
    """What is done to the logits before a token is chosen; None: not done.

    Which steps there are selects the compiled program, and so does `top_k`; other values do not.

    Attributes:
      key: Of the draws; None: the most likely token is taken.
      temperature: Divides the logits, > 0.
      top_k: The k largest stay (and what equals the k-th).
      top_p: The smallest set of likeliest tokens whose probability exceeds this stays.
      min_p: Tokens under this times the largest probability go.
      repetition_penalty: Divides positive and multiplies negative logits of tokens already there.
    """

    key: jax.Array | None = None
    temperature: Scalar | None = None
    top_k: int | None = None
    top_p: Scalar | None = None
    min_p: Scalar | None = None
    repetition_penalty: Scalar | None = None


def warped(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"] | None, warp: Warp
) -> Float[Array, "B V"]:
    """Repetition penalty, temperature, top-k, top-p, min-p; what is excluded becomes -inf.

    The penalty holds for greedy choice too; the others only where a token is drawn.

    Args:
      logits: Of the next token, [B, V], float32.
      seen: Tokens of the row's prompt and of what followed; needed for the penalty alone.
      warp: The steps.

    Returns:
      [B, V]; its softmax is the distribution.

    Source: https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/generation/logits_process.py
      (formulas and ties), `_get_logits_processor` in generation/utils.py (order).
    """
    z = logits
    if warp.repetition_penalty is not None and seen is not None:
        penalised = jnp.where(z < 0, z * warp.repetition_penalty, z / warp.repetition_penalty)
        z = jnp.where(seen, penalised, z)
    if warp.key is None:
        return z
    if warp.temperature is not None:
        z = z / warp.temperature
    if warp.top_k is not None and warp.top_k < z.shape[-1]:
        smallest = jax.lax.top_k(z, warp.top_k)[0][:, -1:]
        z = jnp.where(z < smallest, -jnp.inf, z)
    if warp.top_p is not None:
        z = _top_p(z, warp.top_p)
    if warp.min_p is not None:
        probabilities = jax.nn.softmax(z, axis=-1)
        largest = probabilities.max(axis=-1, keepdims=True)
        z = jnp.where(probabilities < warp.min_p * largest, -jnp.inf, z)
    return z


def _top_p(z: Float[Array, "B V"], top_p: Scalar) -> Float[Array, "B V"]:
    """Exclude the unlikeliest tokens, together at most 1 - top_p; the likeliest one stays."""
    order = jnp.argsort(z, axis=-1, stable=True)
    ascending = jnp.take_along_axis(z, order, axis=-1)
    excluded = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p
    excluded = excluded.at[:, -1].set(False)
    rows = jnp.arange(z.shape[0])[:, None]
    return jnp.where(jnp.zeros_like(excluded).at[rows, order].set(excluded), -jnp.inf, z)


def choose(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"] | None,
    warp: Warp,
    step: Int[Array, ""] | int,
) -> Int[Array, " B"]:
    """The next token of each row.

    The draw's key is that of the row and the step: what a row says depends neither on the rows
    beside it nor on how the steps are grouped.

    Args:
      logits: Of the next token, [B, V], float32.
      seen: As in `warped`.
      warp: As in `warped`.
      step: How many new tokens there are already.

    Returns:
      Token ids, [B], int32.
    """
    z = warped(logits, seen, warp)
    if warp.key is None:
        return jnp.argmax(z, axis=-1).astype(jnp.int32)
    key = jax.random.fold_in(warp.key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(z.shape[0]))
    return jax.vmap(jax.random.categorical)(keys, z).astype(jnp.int32)
