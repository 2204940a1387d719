"""x W^T for a frozen W of 4 bits, which is dense only while the product is computed."""

import dataclasses
import functools
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels import NF4, dequantize_nf4
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def frozen_product(
    kernels: str, x: Float[Array, "B T I"], stack: Stack, layer: Int[Array, ""] | int
) -> Float[Array, "B T O"]:
    """The product y = x W^T, with dx = dy W. Neither keeps W: each dequantises it for itself.

    Args:
      kernels: Backend request.
      x: Input, [B, T, in].
      stack: Holds W, [L, out, in].
      layer: Index of the layer.

    Returns:
      [B, T, out] in x's dtype.
    """
    return x @ layer_matrix(stack, layer, x.dtype, kernels).T


def _forward(
    kernels: str, x: Float[Array, "B T I"], stack: Stack, layer: Int[Array, ""] | int
) -> tuple[Float[Array, "B T O"], tuple[Stack, Int[Array, ""] | int]]:
    return frozen_product(kernels, x, stack, layer), (stack, layer)


def _backward(
    kernels: str, residuals: tuple[Stack, Int[Array, ""] | int], dy: Float[Array, "B T O"]
) -> tuple[Float[Array, "B T I"], None, None]:
    stack, layer = residuals
    return dy @ layer_matrix(stack, layer, dy.dtype, kernels), None, None


frozen_product.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def joined_product(
    kernels: str,
    offset: int,
    wide: Float[Array, "B T IE"],
    x: Float[Array, "B T I"],
    p: Float[Array, "B T R"],
    b: Float[Array, "O R"],
    weight: NF4,
    layer: Int[Array, ""] | int,
) -> Float[Array, "B T O"]:
    """The product y = x W^T + p b^T as one: wide [W, 0, b, 0]^T with wide = [x, .., p, ..].

    The sum is made in the product's accumulator, so that neither term is written by itself.
    dx = dy W, dp = dy b, db = dy^T p: those of the two products.

    Args:
      kernels: Backend request.
      offset: Columns of `wide` between x and p.
      wide: x, p and what belongs to other projections of the same x, [B, T, I + E].
      x: Takes the gradient; its value is read from `wide`.
      p: Likewise.
      b: [O, R].
      weight: Holds W, [L, O, I].
      layer: Index of the layer.

    Returns:
      [B, T, O].
    """
    del x
    extra = wide.shape[-1] - weight.matrix[1]
    beside = jnp.pad(b, ((0, 0), (offset, extra - offset - p.shape[-1])))
    with jax.named_scope("dequantize"):
        matrix = dequantize_nf4(weight, layer, wide.dtype, beside=beside, backend=kernels)
    return wide @ matrix.T


def _joined_forward(
    kernels: str,
    offset: int,
    wide: Float[Array, "B T IE"],
    x: Float[Array, "B T I"],
    p: Float[Array, "B T R"],
    b: Float[Array, "O R"],
    weight: NF4,
    layer: Int[Array, ""] | int,
) -> tuple[Float[Array, "B T O"], tuple[Any, ...]]:
    return joined_product(kernels, offset, wide, x, p, b, weight, layer), (p, b, weight, layer)


def _joined_backward(
    kernels: str, offset: int, residuals: tuple[Any, ...], dy: Float[Array, "B T O"]
) -> tuple[Any, ...]:
    del offset
    p, b, weight, layer = residuals
    dx = dy @ layer_matrix(weight, layer, dy.dtype, kernels)
    with jax.named_scope("lora"):
        dp, db = dy @ b, jnp.einsum("BTO,BTR->OR", dy, p)
    return None, dx, dp, db, None, None


joined_product.defvjp(_joined_forward, _joined_backward)
