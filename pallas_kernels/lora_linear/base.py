"""The product with a frozen weight, which is dense only while it is computed."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.lora_linear.contract import Weight
from pallas_kernels.nf4.bank import layer_matrix
from pallas_kernels.nf4.contract import NF4
from pallas_kernels.nf4_matmul.api import nf4_matmul
from pallas_kernels.nf4_matmul.plan import MOST_ROWS


def matrix_of(
    weight: Weight, layer: Int[Array, ""] | int, like: Float[Array, "..."], kernels: str
) -> Float[Array, "O I"]:
    """A weight as a dense matrix of the dtype of `like`."""
    if isinstance(weight, jax.Array):
        return weight.astype(like.dtype)
    return layer_matrix(weight, layer, like.dtype, kernels)


def few_rows(x: Float[Array, "*B I"]) -> bool:
    """Whether x has so few rows that writing a dense weight would cost more than the product."""
    return x.size // x.shape[-1] <= MOST_ROWS


def product(
    x: Float[Array, "*B I"], weight: Weight, layer: Int[Array, ""] | int, kernels: str
) -> Float[Array, "*B O"]:
    """The product x W^T."""
    # A forced backend may serve the dequantisation and not this product: it is left out then.
    if isinstance(weight, NF4) and kernels == "auto" and few_rows(x):
        return nf4_matmul(x, weight, layer)
    return x @ matrix_of(weight, layer, x, kernels).T


def frozen_linear(
    x: Float[Array, "*B I"],
    weight: Weight,
    *,
    layer: Int[Array, ""] | int = 0,
    backend: str = "auto",
) -> Float[Array, "*B O"]:
    """The product y = x W^T, with dx = dy W and no gradient of W.

    Neither pass keeps a dense copy of a quantised W: each dequantises it for itself.

    Args:
      x: Input, [..., I].
      weight: W, [O, I], or a stack of quantised weights, [L, O, I].
      layer: Index into a stack; may be traced.
      backend: Of the dequantisation: "auto", "xla", "triton" or "interpret".

    Returns:
      [..., O] in x's dtype.
    """
    return _product(backend, x, weight, layer)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
    kernels: str, x: Float[Array, "*B I"], weight: Weight, layer: Int[Array, ""] | int
) -> Float[Array, "*B O"]:
    return product(x, weight, layer, kernels)


def _forward(kernels: str, x: Any, weight: Any, layer: Any) -> tuple[Any, tuple[Any, Any]]:
    return _product(kernels, x, weight, layer), (weight, layer)


def _backward(kernels: str, residuals: tuple[Any, Any], dy: Any) -> tuple[Any, None, None]:
    weight, layer = residuals
    return dy @ matrix_of(weight, layer, dy, kernels), None, None


_product.defvjp(_forward, _backward)
