"""What `api.py` and the backends of attention hand each other."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float, Int


@dataclass(frozen=True, kw_only=True)
class Options:
    """Static arguments of one call.

    Attributes:
      scale: Factor on the dot products, dimensionless.
      window: Attention span in tokens, the query's own included; None is unlimited.
      softcap: Scores become softcap * tanh(score / softcap); None leaves them.
    """

    scale: float
    window: int | None
    softcap: float | None


class Inputs(NamedTuple):
    """Array arguments of one call; cotangents are handed back in the same form.

    `window` is one that is only known when the program runs; `Options.window` is then None.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    q_segment_ids: Int[Array, "B T"] | None
    kv_segment_ids: Int[Array, "B S"] | None
    q_offset: Int[Array, ""]
    window: Int[Array, ""] | None = None

    def span(self, options: Options) -> int | Int[Array, ""] | None:
        """The window in tokens, wherever it stands; None is unlimited."""
        return options.window if self.window is None else self.window


class Residuals(NamedTuple):
    """What the backward needs; `o` and `lse` are all that it keeps besides the inputs."""

    inputs: Inputs
    o: Float[Array, "B T N H"]
    lse: Float[Array, "B N T"]
