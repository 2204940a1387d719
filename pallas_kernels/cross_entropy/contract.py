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
      logit_scale: Factor on the logits before the soft-cap, dimensionless.
      label_smoothing: Share of a target that is spread over the vocabulary, 0 to 1.
      chunk_rows: Rows whose logits exist at a time; None chooses.
    """

    softcap: float | None = None
    logit_scale: float = 1.0
    label_smoothing: float = 0.0
    chunk_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which gradients the forward has to take along."""

    x: bool
    head: bool


class Residuals(NamedTuple):
    """Gradients of the loss sum itself; None where the input is not differentiated."""

    dx: Float[Array, "M D"] | None
    d_head: Float[Array, "V D"] | None
