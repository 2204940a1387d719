"""The definition: whole logits in plain jax.numpy, differentiated by JAX. Tests only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy.contract import IGNORED, Options


def linear_cross_entropy_ref(
    options: Options,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
) -> Float[Array, ""]:
    """Sum token losses as `pallas_kernels.linear_cross_entropy` documents it."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    z = jnp.einsum("MD,VD->MV", x, head, preferred_element_type=wide)
    z *= options.logit_scale
    if options.softcap is not None:
        z = options.softcap * jnp.tanh(z / options.softcap)
    counted = labels != IGNORED
    picked = jnp.take_along_axis(z, jnp.where(counted, labels, 0)[:, None], axis=1)[:, 0]
    lse, smoothing = jax.nn.logsumexp(z, axis=1), options.label_smoothing
    losses = (1 - smoothing) * (lse - picked) + smoothing * (lse - z.mean(axis=1))
    return jnp.where(counted, losses, 0).sum()
