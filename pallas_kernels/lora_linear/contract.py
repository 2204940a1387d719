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


class Prepared(NamedTuple):
    """The adapters of a group as its products read them, of all layers, in the compute dtype.

    Attributes:
      a: s_j A_j below each other, [L, sum of r, I].
      b: B_j below each other, and zero columns up to the largest r, [L, sum of O, R].
    """

    a: Float[Array, "L _ I"]
    b: Float[Array, "L O R"]


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
      adapters: One a projection; their gradients are asked for, their values are in `prepared`.
      prepared: The adapters again.
      layer: Index into the weights that are stacks.
      place: Index into `prepared`.
    """

    x: Float[Array, "*B I"]
    dropped: Float[Array, "*B I"] | None
    weights: tuple[Weight, ...]
    adapters: tuple[Adapter, ...]
    prepared: Prepared
    layer: Int[Array, ""]
    place: Int[Array, ""]


class Residuals(NamedTuple):
    """What the backward needs.

    Attributes:
      inputs: Of the call; of x and `dropped` only what the A's multiplied is read.
      p: s z A^T of all projections side by side, [..., sum of r].
    """

    inputs: Inputs
    p: Float[Array, "*B _"]
