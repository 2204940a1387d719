"""What `api.py` and the backends of the gated activation hand each other."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Static arguments of one call.

    Attributes:
      activation: One of `ACTIVATIONS`.
    """

    activation: str


class Residuals(NamedTuple):
    """What the backward needs: the inputs and nothing else."""

    gate: Float[Array, "..."]
    up: Float[Array, "..."]
