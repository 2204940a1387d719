"""What `api.py` and the backends of the norm hand each other."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float

from pallas_kernels.pytree import pytree


@dataclass(frozen=True, kw_only=True)
class Options:
    """Static arguments of one call.

    Attributes:
      eps: Added to the mean square, > 0.
      unit_offset: Gemma's form: 1 + weight, one cast at the end. Else Llama's: a cast before the
        weight.
    """

    eps: float
    unit_offset: bool


@pytree(data=(), meta=("weight",))
@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Whether the weight has a gradient; that of the stream is always made."""

    weight: bool


class Residuals(NamedTuple):
    """What the backward needs; `rstd` is all that it keeps besides the stream and the weight."""

    h: Float[Array, "... D"]
    weight: Float[Array, " D"]
    rstd: Float[Array, "..."]
