"""A linear layer with an optional LoRA branch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxtune.layers.context import LayerContext
from jaxtune.layers.frozen_product import frozen_product, is_stack
from jaxtune.layers.residuals import LORA_INPUT, named
from jaxtune.layers.variables import weight_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The LoRA branch of one stacked projection, layer by layer.

    Attributes:
      ranks: Rank of each layer, [L]; 0 where the layer has no adapter. The stacks are padded with
        zero rows to the largest: A = B = 0 is a fixed point of the gradient and of Adam.
      scales: s of each layer, [L]: alpha / r, or alpha / sqrt(r) (rsLoRA).
      dropout: Probability of zeroing an input of A, in [0, 1).
    """

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    dropout: int | float


class Linear(nnx.Module):
    """y = x W^T + b + s (drop(x) A^T) B^T, with Hugging Face's layout of W, A and B.

    `weight` is [L, out, in] in a stack and [out, in] outside one; A [L, R, in] and B [L, out, R]
    are float32 and computed in x's dtype. Inside a run the module holds one layer's slices.

    Attributes:
      weight: W, or a stack of quantised W: `NF4` or `Bank`.
      trained_weight: W's trained copy; exists only under `modules_to_save`.
      bias: b, or None.
      lora: Ranks, scales and dropout of the branch; None where there is none.
      lora_A: A; exists only with `lora`.
      lora_B: B; exists only with `lora`.
    """

    lora_A: nnx.LoRAParam
    lora_B: nnx.LoRAParam

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        layers: int | None,
        bias: bool,
        std: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        """Draw the weight from N(0, std^2)."""
        lead = () if layers is None else (layers,)
        shape = (*lead, out_features, in_features)
        self.weight = nnx.Param((jax.random.normal(rngs.params(), shape) * std).astype(dtype))
        self.bias = nnx.Param(jnp.zeros((*lead, out_features), dtype)) if bias else None
        self.lora: LoraSpec | None = None

    def __call__(
        self, x: Float[Array, "B T I"], context: LayerContext, slot: int
    ) -> Float[Array, "B T O"]:
        """Apply one layer.

        Args:
          x: Input, [B, T, in].
          context: Layer index, adapter switch and dropout key.
          slot: Number of this projection in its block; separates the dropout masks.

        Returns:
          [B, T, out] in x's dtype.
        """
        weight = weight_of(self, context.adapters)
        if is_stack(weight):
            y = frozen_product(context.kernels, x, weight, context.layer)
        else:
            y = x @ weight.astype(x.dtype).T
        y = self.with_bias(y)
        if self.lora is None or not context.adapters:
            return y
        inner = self.lora_input(self.lora, x, context, slot)
        with jax.named_scope("lora"):
            return y + inner @ self.lora_B[...].astype(x.dtype).T

    def with_bias(self, y: Float[Array, "B T O"]) -> Float[Array, "B T O"]:
        """Add the bias, where there is one."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    @jax.named_scope("lora")  # profiles tell its products from the base's by this name
    def lora_input(
        self, lora: LoraSpec, x: Float[Array, "B T I"], context: LayerContext, slot: int
    ) -> Float[Array, "B T R"]:
        """What B multiplies in the LoRA branch, s drop(x) A^T."""
        a = self.lora_A[...].astype(x.dtype)
        if lora.dropout > 0 and context.dropout_key is not None:
            keep = 1 - lora.dropout
            key = jax.random.fold_in(context.dropout_key, slot)
            mask = jax.random.bernoulli(key, keep, x.shape)
            x = jnp.where(mask, x / keep, 0).astype(x.dtype)
        scale = jnp.asarray(lora.scales, jnp.float32)[context.layer]
        return named((x @ a.T) * scale.astype(x.dtype), LORA_INPUT)


def kaiming_uniform_bound(in_features: int) -> float:
    """Half-width of PEFT's initial A: kaiming_uniform(a=sqrt(5)) = U(-1/sqrt(in), 1/sqrt(in))."""
    return 1 / math.sqrt(in_features)
