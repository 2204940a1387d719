"""What `api.py` and the backends of the linear cross-entropy hand each other."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float

IGNORED = -100  # the label of a row without loss, as in torch and HF


@dataclass(frozen=True, kw_only=True)
class Options:
    """Static arguments of one call.

    Attributes:
      softcap: Logits become softcap * tanh(logit / softcap); None leaves them.
      chunk_rows: Rows whose logits exist at a time; None chooses.
    """

    softcap: float | None
    chunk_rows: int | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which gradients the forward has to take along."""

    x: bool
    head: bool


class Residuals(NamedTuple):
    """Gradients of the loss sum itself; None where the input is not differentiated."""

    dx: Float[Array, "M D"] | None
    d_head: Float[Array, "V D"] | None
