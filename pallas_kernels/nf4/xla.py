"""Dequantisation in plain JAX, for every device; bit-equal to the kernel."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.nf4.contract import NF4
from pallas_kernels.nf4.rounding import rounded_product


def forward(
    weight: NF4, layer: Int[Array, ""], dtype: DTypeLike, beside: Float[Array, "O E"] | None = None
) -> Float[Array, "O IE"]:
    """One layer's weight.

    Args:
      weight: The stack.
      layer: Its index.
      dtype: Of the result.
      beside: Columns that follow the weight's.

    Returns:
      [O, I + E].
    """
    codes = lax.dynamic_index_in_dim(weight.codes, layer, keepdims=False)
    absmax = layer_absmax(weight, layer)
    flat = jnp.concatenate([codes >> 4, codes & 15])
    elements = weight.matrix[0] * weight.matrix[1]
    values = weight.table[flat[:elements].astype(jnp.int32)]
    padding = -elements % weight.block
    blocks = jnp.pad(values, (0, padding)).reshape(-1, weight.block) * absmax[:, None]
    rounded = blocks.reshape(-1)[:elements].astype(weight.dtype)
    dense = rounded.reshape(weight.matrix).astype(dtype)
    return dense if beside is None else jnp.concatenate([dense, beside], axis=1)


def layer_absmax(weight: NF4, layer: Int[Array, ""]) -> Float[Array, " _"]:
    """One layer's absmax in float32."""
    absmax = lax.dynamic_index_in_dim(weight.absmax, layer, keepdims=False)
    nested = weight.nested
    if nested is None:
        return absmax
    scales = lax.dynamic_index_in_dim(nested.absmax, layer, keepdims=False)
    scales = jnp.repeat(scales, nested.block)[: absmax.size]
    return rounded_product(nested.table[absmax.astype(jnp.int32)], scales) + nested.offset[layer]


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward)
