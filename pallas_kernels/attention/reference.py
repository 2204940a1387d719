"""The definition: the whole [T, S] mask in plain jax.numpy, differentiated by JAX. Tests only."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.attention.contract import Inputs, Options


def visible(options: Options, inputs: Inputs) -> Bool[Array, "B T S"]:
    """Say which keys each query may see."""
    B, T, S = inputs.q.shape[0], inputs.q.shape[1], inputs.k.shape[1]
    t = jnp.arange(T)[:, None] + inputs.q_offset
    s = jnp.arange(S)[None, :]
    mask = s <= t
    window = inputs.span(options)
    if window is not None:
        mask &= t - s < window
    mask = jnp.broadcast_to(mask, (B, T, S))
    if inputs.q_segment_ids is not None and inputs.kv_segment_ids is not None:
        mask &= inputs.q_segment_ids[:, :, None] == inputs.kv_segment_ids[:, None, :]
    return mask


def attention_ref(options: Options, inputs: Inputs) -> Float[Array, "B T N H"]:
    """Attend as `pallas_kernels.attention` documents it, one full score matrix at a time."""
    q, k, v = inputs.q, inputs.k, inputs.v
    B, T, N, H = q.shape
    K = k.shape[2]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=wide)
    scores *= options.scale
    if options.softcap is not None:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
    mask = visible(options, inputs)[:, None, None]  # [B, 1, 1, T, S]
    scores = jnp.where(mask, scores, -1e30)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    probabilities = weights / jnp.where(total == 0, 1, total)
    o = jnp.einsum(
        "BKGTS,BSKH->BTKGH", probabilities.astype(v.dtype), v, preferred_element_type=wide
    )
    return o.reshape(B, T, N, H).astype(q.dtype)
