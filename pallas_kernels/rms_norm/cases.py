"""Named shapes of the norm, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.rms_norm.contract import Options


class Inputs(NamedTuple):
    """Array arguments of one call."""

    x: Float[Array, "M D"]
    residual: Float[Array, "M D"] | None
    weight: Float[Array, " D"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """M rows of width D.

    Attributes:
      unit_offset: Gemma's form.
      adds: A residual is added first.
    """

    name: str
    M: int
    D: int
    unit_offset: bool = False
    adds: bool = True

    @property
    def options(self) -> Options:
        """Static arguments of the op."""
        return Options(eps=1e-5, unit_offset=self.unit_offset)

    @property
    def forward_bytes(self) -> int:
        """Bytes that the forward must move in bfloat16: 8 an element with the addition, else 4."""
        return (8 if self.adds else 4) * self.M * self.D + 4 * self.M + 2 * self.D

    @property
    def backward_bytes(self) -> int:
        """Those of the backward, of a frozen weight: dh, where h is used, dy, h and dx."""
        return (8 if self.adds else 6) * self.M * self.D + 4 * self.M + 2 * self.D


REAL_CASES = (
    Case(name="llama3_1b_4k", M=4096, D=2048),
    Case(name="llama3_1b_16k", M=16384, D=2048),
    Case(name="llama3_8b_4k", M=4096, D=4096),
    Case(name="llama3_8b_16k", M=16384, D=4096),
    Case(name="gemma2_9b_4k", M=4096, D=3584, unit_offset=True),
    Case(name="gemma2_9b_16k", M=16384, D=3584, unit_offset=True),
    Case(name="llama3_8b_plain_4k", M=4096, D=4096, adds=False),
    Case(name="llama3_8b_plain_16k", M=16384, D=4096, adds=False),
    Case(name="gemma2_9b_plain_16k", M=16384, D=3584, unit_offset=True, adds=False),
    # The norm of each head's queries.
    Case(name="gemma3_12b_heads_4k", M=4096 * 16, D=256, unit_offset=True, adds=False),
)

ODD_CASES = (
    Case(name="one", M=1, D=1),
    Case(name="one_row", M=1, D=24),
    Case(name="one_column", M=5, D=1, unit_offset=True),
    Case(name="primes", M=37, D=53),
    Case(name="primes_plain", M=37, D=53, adds=False),
    Case(name="short_rows", M=131, D=16, unit_offset=True),
    Case(name="ragged_width", M=3, D=2057),
    Case(name="whole_tiles", M=256, D=16, adds=False),
    Case(name="whole_rows", M=2, D=4096, unit_offset=True),
)


def make_inputs(case: Case, dtype: str, normal: Callable[[tuple[int, ...]], Any]) -> Inputs:
    """Make the arrays of a case; `normal` draws them from their shapes."""
    x = jnp.asarray(normal((case.M, case.D)), dtype)
    residual = jnp.asarray(normal((case.M, case.D)), dtype) if case.adds else None
    start = 0 if case.unit_offset else 1
    return Inputs(x, residual, jnp.asarray(start + 0.2 * normal((case.D,)), dtype))
