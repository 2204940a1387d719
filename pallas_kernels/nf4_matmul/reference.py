"""The definition: the defined weight, and a product with exact sums. Tests only."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.nf4 import NF4
from pallas_kernels.nf4.reference import dequantize_nf4_ref


def nf4_matmul_ref(x: Float[Array, "*B I"], weight: NF4, layer: int) -> Float[Array, "*B O"]:
    """The product, as `pallas_kernels.nf4_matmul` documents it."""
    matrix = dequantize_nf4_ref(weight, layer, x.dtype)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.einsum(
        "...I,OI->...O", x, matrix, preferred_element_type=wide, precision=lax.Precision.HIGHEST
    )
    return y.astype(x.dtype)
