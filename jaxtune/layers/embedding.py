"""The token embedding."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxtune.layers.variables import weight_of


class Embedding(nnx.Module):
    """Rows of a [V, D] matrix, scaled as Gemma does.

    y = cast(weight[ids]) * cast(scale): the scale is rounded to the compute dtype before the
    product, as in transformers' `Gemma2TextScaledWordEmbedding`.

    Attributes:
      weight: [V, D].
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
        rows = weight_of(self, adapters).at[input_ids].get(mode="clip").astype(self.dtype)
        if self.scale == 1.0:
            return rows
        return rows * jnp.asarray(self.scale, rows.dtype)
