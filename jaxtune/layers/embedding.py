"""The token embedding."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxtune.layers.host_memory import rows_of
from jaxtune.layers.variables import weight_of


class Embedding(nnx.Module):
    """Rows of a [V, D] matrix, scaled as Gemma does.

    y = cast(weight[ids]) * cast(scale): the scale is rounded to the compute dtype before the
    product, as in transformers' `Gemma2TextScaledWordEmbedding`.

    Attributes:
      weight: [V, D]; may lie in host memory.
      trained_weight: Its trained copy; exists only under `modules_to_save`.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        scale: float,
        std: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the matrix from N(0, std^2); `dtype` is that of the weight and of the output."""
        self.scale = scale
        self.dtype = jnp.dtype(dtype)
        draw = jax.random.normal(rngs.params(), (vocab_size, width)) * std
        self.weight = nnx.Param(draw.astype(dtype))

    def __call__(self, input_ids: Int[Array, "B T"], *, adapters: bool) -> Float[Array, "B T D"]:
        """Look the rows up. Ids outside [0, V) are the caller's error; they are clipped."""
        rows = rows_of(weight_of(self, adapters), input_ids).astype(self.dtype)
        if self.scale == 1.0:
            return rows
        return rows * jnp.asarray(self.scale, rows.dtype)


def with_noise(
    x: Float[Array, "B T D"],
    key: jax.Array,
    alpha: int | float,
    segment_ids: Int[Array, "B T"] | None,
) -> Float[Array, "B T D"]:
    """NEFTune's noise: x + U(-m, m), m = alpha / sqrt(T D).

    T is the length of the token's own document, so that packing rows does not change the noise;
    of one document a row it is the padded length, as in transformers.

    Args:
      x: Output of the embedding, scaled.
      key: Of this draw.
      alpha: Strength, > 0; the paper takes 5 to 15.
      segment_ids: Document of each token; None: one a row.

    Returns:
      [B, T, D] in x's dtype; the noise is drawn in float32.

    Source: https://arxiv.org/abs/2310.05914; `neftune_post_forward_hook` of transformers.
    """
    length = jnp.float32(x.shape[1])
    if segment_ids is not None:
        length = _document_lengths(segment_ids).astype(jnp.float32)[..., None]
    bound = alpha / jnp.sqrt(length * x.shape[2])
    draw = jax.random.uniform(key, x.shape, jnp.float32, -1.0, 1.0)
    return x + (bound * draw).astype(x.dtype)


def _document_lengths(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Tokens in the run of equal segments that each token is in."""
    index = jnp.arange(segment_ids.shape[1])[None]
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    border = jnp.pad(changed, ((0, 0), (1, 1)), constant_values=True)
    begins, ends = border[:, :-1], border[:, 1:]
    first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, index, index[:, -1:]), axis=1, reverse=True)
    return last - first + 1
