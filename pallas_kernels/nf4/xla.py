"""Dequantisation in plain JAX, for every device; bit-equal to the kernel."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.nf4.contract import NF4, Beside
from pallas_kernels.nf4.rounding import rounded_product


def forward(
    weights: Sequence[NF4],
    layer: Int[Array, ""],
    dtype: DTypeLike,
    beside: Beside | None = None,
    below: int = 0,
) -> Float[Array, "OB IE"]:
    """One layer of each weight, all of one width, below each other.

    Args:
      weights: The stacks.
      layer: Index into each.
      dtype: Of the result.
      beside: Columns that follow the weights'.
      below: Rows that follow theirs, of any value.

    Returns:
      [sum of O + below, I + E].
    """
    parts = [_matrix(weight, layer, dtype) for weight in weights]
    if beside is not None:
        parts = _with_columns(parts, beside)
    return jnp.pad(jnp.concatenate(parts), ((0, below), (0, 0)))


def _with_columns(parts: list[Float[Array, "_ I"]], beside: Beside) -> list[Float[Array, "_ IE"]]:
    rows = lax.dynamic_index_in_dim(beside.stack, beside.layer, keepdims=False)
    wide, first = [], beside.first_row
    for part, column in zip(parts, beside.columns, strict=True):
        own = rows[first : first + part.shape[0], : beside.width - column]
        room = (column, beside.width - column - own.shape[1])
        wide.append(jnp.concatenate([part, jnp.pad(own, ((0, 0), room))], axis=1))
        first += part.shape[0]
    return wide


def _matrix(weight: NF4, layer: Int[Array, ""], dtype: DTypeLike) -> Float[Array, "O I"]:
    codes = lax.dynamic_index_in_dim(weight.codes, layer, keepdims=False)
    absmax = layer_absmax(weight, layer)
    flat = jnp.concatenate([codes >> 4, codes & 15])
    elements = weight.matrix[0] * weight.matrix[1]
    values = weight.table[flat[:elements].astype(jnp.int32)]
    padding = -elements % weight.block
    blocks = jnp.pad(values, (0, padding)).reshape(-1, weight.block) * absmax[:, None]
    rounded = blocks.reshape(-1)[:elements].astype(weight.dtype)
    return rounded.reshape(weight.matrix).astype(dtype)


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
