"""The token embedding."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class Embedding(nnx.Module):
    """Rows of a [V, D] matrix, scaled as Gemma does.

    y = weight[ids] * cast(scale): the scale is rounded to the weight's dtype before the product,
    as in transformers' `Gemma2TextScaledWordEmbedding`.
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
        """Draw the matrix from N(0, std^2)."""
        self.scale = scale
        draw = jax.random.normal(rngs.params(), (vocab_size, width)) * std
        self.weight = nnx.Param(draw.astype(dtype))

    def __call__(self, input_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Look the rows up. Ids outside [0, V) are the caller's error; they are clipped."""
        weight = self.weight[...]
        rows = weight.at[input_ids].get(mode="clip")
        if self.scale == 1.0:
            return rows
        return rows * jnp.asarray(self.scale, rows.dtype)
