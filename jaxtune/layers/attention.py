"""Grouped-query self-attention with rotary positions, windows, soft-caps and a cache."""

import functools

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxtune.config import DecoderConfig
from jaxtune.layers.cache import KVCache
from jaxtune.layers.context import LayerContext
from jaxtune.layers.linear import Linear, prepare, project
from jaxtune.layers.norm import RMSNorm
from jaxtune.layers.residuals import KEY, QUERY, VALUE, named
from jaxtune.layers.rope import apply_rope
from pallas_kernels import attention
from pallas_kernels.lora_linear import Prepared


class Attention(nnx.Module):
    """o(softmax(cap(scale * rope(q) rope(k)^T) + mask) v).

    With `qk_norm`, q and k are normalised over each head's width before the rotation.
    """

    def __init__(
        self, config: DecoderConfig, *, layers: int, std: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        """Stack the four projections of `layers` layers."""
        linear = functools.partial(
            Linear, layers=layers, bias=config.attention_bias, std=std, dtype=dtype, rngs=rngs
        )
        query_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.config = config
        self.q_proj = linear(config.hidden_size, query_width)
        self.k_proj = linear(config.hidden_size, kv_width)
        self.v_proj = linear(config.hidden_size, kv_width)
        self.o_proj = linear(query_width, config.hidden_size)
        if config.norm.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm, layers=layers, dtype=dtype)
            self.k_norm = RMSNorm(config.head_dim, config.norm, layers=layers, dtype=dtype)

    def prepare(
        self, dtype: DTypeLike, *, adapters: bool, dropout_key: jax.Array | None
    ) -> dict[int, Prepared]:
        """The adapters of all layers; see `jaxtune.layers.linear.prepare`."""
        ready = functools.partial(prepare, dtype=dtype, adapters=adapters, dropout_key=dropout_key)
        return ready((self.q_proj, self.k_proj, self.v_proj), 0) | ready((self.o_proj,), 3)

    def __call__(
        self, x: Float[Array, "B T D"], context: LayerContext
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Attend; return the output and the cache with this layer's keys and values in it."""
        projected = project((self.q_proj, self.k_proj, self.v_proj), x, context, 0)
        q, k, v = (self._heads(y) for y in projected)
        if self.config.norm.qk_norm:
            # What the norms read is kept; the rotations of what they give are cheap.
            q, k = named(q, QUERY), named(k, KEY)
            q = self.q_norm(q, adapters=context.adapters, kernels=context.row_kernels)
            k = self.k_norm(k, adapters=context.adapters, kernels=context.row_kernels)
        q = apply_rope(q, context.cos, context.sin)
        k = apply_rope(k, context.cos, context.sin)
        if not self.config.norm.qk_norm:
            q, k = named(q, QUERY), named(k, KEY)
        v = named(v, VALUE)
        cache, kv_segment_ids, q_offset = context.cache, context.segment_ids, 0
        if cache is not None:
            q_offset = cache.length
            cache = cache.write(context.layer, k, v)
            k, v = cache.layer(context.layer)
            kv_segment_ids = cache.segment_ids
        y = attention(
            q,
            k,
            v,
            scale=self.config.query_scale,
            window=context.spec.window,
            softcap=self.config.attn_logit_softcapping,
            q_segment_ids=context.segment_ids,
            kv_segment_ids=kv_segment_ids,
            q_offset=q_offset,
            backend=context.kernels,
        )
        y = y.reshape(*y.shape[:2], -1)  # [B, T, N*H]
        return self.o_proj(y, context, 3), cache

    def _heads(self, x: Float[Array, "B T NH"]) -> Float[Array, "B T N H"]:
        """Split the last axis into heads."""
        return x.reshape(*x.shape[:2], -1, self.config.head_dim)
