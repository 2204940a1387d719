"""Projections of one input, each with its LoRA branch in the same product as its 4-bit base."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtune.layers.context import LayerContext
from jaxtune.layers.frozen_product import joined_product
from jaxtune.layers.linear import Linear
from jaxtune.layers.variables import weight_of
from pallas_kernels import NF4

ALIGNED = 16  # columns; rows of a product's operands begin at multiples of 32 bytes


def project(
    linears: Sequence[Linear], x: Float[Array, "B T I"], context: LayerContext, first_slot: int
) -> list[Float[Array, "B T O"]]:
    """Apply projections to one input.

    With 4-bit weights, x and every p = s x A^T stand side by side in one array, and each W beside
    its B, so that a projection is one product: the adapter's term is neither written nor read by
    itself. Pays where the outputs are wider than the input.

    Args:
      linears: Of the same input width.
      x: Their input, [B, T, I].
      context: Of the layer.
      first_slot: Number of the first projection in its block; the others follow.

    Returns:
      Their outputs.
    """
    slots = range(first_slot, first_slot + len(linears))
    adapted = [(m, m.lora) for m in linears if m.lora is not None and context.adapters]
    weights = [weight_of(linear, context.adapters) for linear in linears]
    quantized = [weight for weight in weights if isinstance(weight, NF4)]
    if not len(adapted) == len(quantized) == len(linears):
        pairs = zip(linears, slots, strict=True)
        return [linear(x, context, slot) for linear, slot in pairs]
    triples = zip(adapted, slots, strict=True)
    inner = [linear.lora_input(lora, x, context, slot) for (linear, lora), slot in triples]
    extra = sum(p.shape[-1] for p in inner)
    wide = jnp.concatenate([x, *inner], axis=-1)
    wide = jnp.pad(wide, ((0, 0), (0, 0), (0, -extra % ALIGNED)))
    outputs, offset = [], 0
    for linear, p, weight in zip(linears, inner, quantized, strict=True):
        b = linear.lora_B[...].astype(x.dtype)
        y = joined_product(context.kernels, offset, wide, x, p, b, weight, context.layer)
        outputs.append(linear.with_bias(y))
        offset += p.shape[-1]
    return outputs
