"""The definition in plain jax.numpy, differentiated by JAX. Tests only."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.glu.contract import Options


def glu_ref(
    options: Options, gate: Float[Array, "..."], up: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Gate as `pallas_kernels.glu` documents it."""
    wide = gate.astype(jnp.promote_types(gate.dtype, jnp.float32))
    silu = options.activation == "silu"
    activated = jax.nn.silu(wide) if silu else jax.nn.gelu(wide, approximate=True)
    return activated.astype(gate.dtype) * up
