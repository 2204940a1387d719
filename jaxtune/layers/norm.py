"""RMS normalisation, in Llama's and Gemma's cast order."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxtune.config import NormSpec
from jaxtune.layers.variables import weight_of
from pallas_kernels import add_rms_norm, rms_norm


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis; see `pallas_kernels.rms_norm`.

    The weight is Llama's, or with `unit_offset` Gemma's, which scales by 1 + weight.
    """

    def __init__(self, width: int, spec: NormSpec, *, layers: int | None, dtype: DTypeLike) -> None:
        """Make a norm that scales by one; `layers` adds the stack's leading axis."""
        shape = (width,) if layers is None else (layers, width)
        self.spec = spec
        start = jnp.zeros if spec.unit_offset else jnp.ones
        self.weight = nnx.Param(start(shape, dtype))

    def __call__(
        self, x: Float[Array, "... D"], *, adapters: bool, kernels: str
    ) -> Float[Array, "... D"]:
        """Normalise `x`; statistics in float32, result in x's dtype."""
        return rms_norm(
            x,
            weight_of(self, adapters),
            eps=self.spec.rms_norm_eps,
            unit_offset=self.spec.unit_offset,
            backend=kernels,
        )

    def of_stream(
        self,
        x: Float[Array, "... D"],
        y: Float[Array, "... D"] | None,
        *,
        adapters: bool,
        kernels: str,
    ) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
        """Normalise the residual stream.

        Args:
          x: The stream, [..., D].
          y: What joins it first; None: nothing.
          adapters: False gives the base model's weight.
          kernels: Backend request.

        Returns:
          (norm, x + y); going on with this sum, not with x, makes the backward pass one.
        """
        return add_rms_norm(
            x,
            y,
            weight_of(self, adapters),
            eps=self.spec.rms_norm_eps,
            unit_offset=self.spec.unit_offset,
            backend=kernels,
        )
