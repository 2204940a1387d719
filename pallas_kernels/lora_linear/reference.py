"""The definition of the LoRA product, differentiated by JAX; for the tests."""

import jax
from jaxtyping import Array, Float

from pallas_kernels.lora_linear.contract import Adapter


def lora_linear_ref(
    x: Float[Array, "*B I"],
    dropped: Float[Array, "*B I"],
    weight: Float[Array, "O I"],
    adapter: Adapter,
) -> Float[Array, "*B O"]:
    """The sum x W^T + s (z A^T) B^T, all in one dtype."""
    branch = adapter.scale * (dropped @ adapter.a.T) @ adapter.b.T
    return x @ jax.lax.stop_gradient(weight).T + branch
