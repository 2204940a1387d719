"""What `api.py` and the backends of the LoRA product hand each other."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from pallas_kernels.nf4.bank import Stack

Weight = Float[Array, "_ _"] | Stack  # one layer's own, or the stack that holds it


class Adapter(NamedTuple):
    """One LoRA branch, s (z A^T) B^T.

    Attributes:
      a: A, [r, I], of any floating dtype; computed in the input's.
      b: B, [O, r], likewise.
      scale: s, a float32 scalar: alpha / r, or alpha / sqrt(r).
    """

    a: Float[Array, "R I"]
    b: Float[Array, "O R"]
    scale: Float[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Static arguments of one call.

    Attributes:
      kernels: Backend request for the dequantisation.
    """

    kernels: str


class Inputs(NamedTuple):
    """Array arguments of one call; cotangents are handed back in the same form.

    Attributes:
      x: What the weights multiply, [..., I].
      dropped: What the A's multiply, [..., I]; None: x.
      weights: Frozen, one a projection.
      adapters: One a projection.
      layer: Index into the weights that are stacks.
    """

    x: Float[Array, "*B I"]
    dropped: Float[Array, "*B I"] | None
    weights: tuple[Weight, ...]
    adapters: tuple[Adapter, ...]
    layer: Int[Array, ""]


class Residuals(NamedTuple):
    """What the backward needs.

    Attributes:
      inputs: Of the call; of x and `dropped` only what the A's multiplied is read.
      p: s z A^T of all projections side by side, [..., R].
    """

    inputs: Inputs
    p: Float[Array, "*B R"]
