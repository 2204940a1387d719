"""DoRA: the length of each row of a weight is trained apart from its direction."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxtune.layers.context import LayerContext
from jaxtune.layers.variables import weight_of
from pallas_kernels.nf4 import Stack, is_stack, layer_matrix


def row_norms(
    weight: Float[Array, "O I"],
    a: Float[Array, "R I"],
    b: Float[Array, "O R"],
    scale: Float[Array, ""] | float,
) -> Float[Array, " O"]:
    """n_o = |W_o + s B_o A|, in float32 with exact products.

    Args:
      weight: W, dense.
      a: A.
      b: B.
      scale: s.

    Returns:
      [O]. One dense float32 copy of W is made meanwhile.
    """
    wide = jnp.promote_types(weight.dtype, jnp.float32)
    delta = jnp.matmul(b.astype(wide), a.astype(wide), precision=lax.Precision.HIGHEST)
    return jnp.linalg.norm(weight.astype(wide) + scale * delta, axis=1)


def stretch(linear: Any, y: Float[Array, "B T O"], context: LayerContext) -> Float[Array, "B T O"]:
    """Give the rows of the adapted weight the lengths m instead of their own n.

    y m / n. n has no gradient, as in section 4.3 of the paper. A layer without an adapter keeps
    its y.

    Args:
      linear: Adapted by DoRA; it holds one layer's slices.
      y: x (W + s B A)^T, without the bias.
      context: Of the layer.

    Returns:
      [B, T, O] in y's dtype; m / n and the product are float32.

    Source: https://arxiv.org/abs/2402.09353; peft `tuners/lora/dora.py` @ v0.21.2.
    """
    weight = weight_of(linear, context.adapters)
    if is_stack(weight):
        weight = _dense(weight, context.layer, context.kernels)
    a, b, scale = (lax.stop_gradient(part) for part in linear.adapter(linear.lora, context.layer))
    norms = row_norms(weight, a, b, scale)
    magnitude = linear.lora_magnitude_vector[...]
    factor = magnitude / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)
    adapted = jnp.asarray(linear.lora.ranks, jnp.int32)[context.layer] > 0
    return (y * jnp.where(adapted, factor, 1)).astype(y.dtype)


def first_magnitudes(
    weight: Any,
    a: Float[Array, "L R I"],
    b: Float[Array, "L O R"],
    scales: tuple[float, ...],
    ranks: tuple[int, ...],
    kernels: str,
) -> Float[Array, "L O"]:
    """The magnitudes at which a new adapter begins, n of each layer: with them y is unchanged.

    Args:
      weight: Stack of W, dense or of 4 bits.
      a: A, zero over each layer's rank.
      b: B, likewise.
      scales: s of each layer.
      ranks: Rank of each layer.
      kernels: Backend request.

    Returns:
      [L, O], zero in layers without an adapter.
    """

    def of_layer(index: jax.Array) -> jax.Array:
        if is_stack(weight):
            dense = _dense(weight, index, kernels)
        else:
            dense = lax.dynamic_index_in_dim(weight, index, keepdims=False)
        norms = row_norms(dense, a[index], b[index], jnp.asarray(scales, jnp.float32)[index])
        return jnp.where(jnp.asarray(ranks)[index] > 0, norms, 0)

    return lax.map(of_layer, jnp.arange(a.shape[0]))


def _dense(stack: Stack, layer: Int[Array, ""] | int, kernels: str) -> Float[Array, "O I"]:
    """One layer of a 4-bit stack with bitsandbytes' values, which are rounded to its dtype.

    Without the barrier XLA may widen them again before it has rounded them.
    """
    return lax.optimization_barrier(layer_matrix(stack, layer, stack.dtype, kernels))
