"""RMS normalisation, in Llama's and Gemma's cast order."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxtune.config import NormSpec
from jaxtune.layers.variables import weight_of


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis.

    n = x * rsqrt(mean(x^2, D) + eps), in float32;
    Llama: y = cast(n) * weight; Gemma (`unit_offset`): y = cast(n * (1 + weight)).

    Source: https://arxiv.org/abs/1910.07467; the cast orders of `LlamaRMSNorm` and
    `Gemma2RMSNorm` in transformers (https://github.com/huggingface/transformers/pull/29402).
    """

    def __init__(self, width: int, spec: NormSpec, *, layers: int | None, dtype: DTypeLike) -> None:
        """Make a norm that scales by one; `layers` adds the stack's leading axis."""
        shape = (width,) if layers is None else (layers, width)
        self.spec = spec
        start = jnp.zeros if spec.unit_offset else jnp.ones
        self.weight = nnx.Param(start(shape, dtype))

    def __call__(self, x: Float[Array, "... D"], *, adapters: bool) -> Float[Array, "... D"]:
        """Normalise `x`; statistics in float32, result in x's dtype."""
        weight = weight_of(self, adapters)
        compute = jnp.promote_types(x.dtype, jnp.float32)
        wide = x.astype(compute)
        mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normed = wide * lax.rsqrt(mean_square + self.spec.rms_norm_eps)
        if self.spec.unit_offset:
            return (normed * (1 + weight.astype(compute))).astype(x.dtype)
        return normed.astype(x.dtype) * weight.astype(x.dtype)
