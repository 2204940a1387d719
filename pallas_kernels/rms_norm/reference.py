"""The definition in plain jax.numpy, differentiated by JAX. Tests only."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.rms_norm.contract import Options


def add_rms_norm_ref(
    options: Options,
    x: Float[Array, "... D"],
    residual: Float[Array, "... D"] | None,
    weight: Float[Array, " D"],
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """Add and normalise as `pallas_kernels.add_rms_norm` documents it."""
    h = x if residual is None else x + residual
    wide = h.astype(jnp.promote_types(h.dtype, jnp.float32))
    normed = wide * lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + options.eps)
    if options.unit_offset:
        return (normed * (1 + weight.astype(wide.dtype))).astype(h.dtype), h
    return normed.astype(h.dtype) * weight.astype(h.dtype), h
