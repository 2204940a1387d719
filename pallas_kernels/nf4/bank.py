"""The weights of one projection over all layers, of which some are quantised and some are not."""

import dataclasses
from typing import TypeGuard

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.nf4.api import dequantize_nf4
from pallas_kernels.nf4.contract import NF4
from pallas_kernels.pytree import pytree


@pytree(data=("dense", "quantized"), meta=("kinds", "slots"))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bank:
    """The stack of one projection of which some layers are quantised and some are not.

    Attributes:
      dense: Weights of the layers that are not, [L_dense, O, I].
      quantized: Those of the others.
      kinds: For each layer, whether it is quantised, [L].
      slots: For each layer, its index in the stack that holds it, [L].
    """

    dense: Float[Array, "_ O I"]
    quantized: NF4
    kinds: tuple[bool, ...]
    slots: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, O, I), as if all layers were dense."""
        return (len(self.kinds), *self.quantized.matrix)

    @property
    def dtype(self) -> jnp.dtype:
        """Of a dense layer."""
        return self.dense.dtype


Stack = NF4 | Bank


def is_stack(value: object) -> TypeGuard[Stack]:
    """Whether a weight is read whole, by layer index, and not by a slice of it."""
    return isinstance(value, (NF4, Bank))


def layer_matrix(
    stack: Stack,
    layer: Int[Array, ""] | int,
    dtype: DTypeLike,
    kernels: str,
) -> Float[Array, "O I"]:
    """One layer's dense weight.

    Args:
      stack: Quantised, in part at least.
      layer: Its index; may be traced.
      dtype: Of the result.
      kernels: Backend request.

    Returns:
      [O, I].
    """
    with jax.named_scope("dequantize"):
        if isinstance(stack, NF4):
            return dequantize_nf4(stack, layer, dtype, backend=kernels)
        slot = jnp.asarray(stack.slots, jnp.int32)[layer]
        return lax.cond(
            jnp.asarray(stack.kinds)[layer],
            lambda: dequantize_nf4(stack.quantized, slot, dtype, backend=kernels),
            lambda: lax.dynamic_index_in_dim(stack.dense, slot, keepdims=False).astype(dtype),
        )
