"""Named shapes of the gated activation, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.glu.contract import Options


@dataclass(frozen=True, kw_only=True)
class Case:
    """M rows of F values."""

    name: str
    M: int
    F: int
    activation: str = "silu"

    @property
    def options(self) -> Options:
        """Static arguments of the op."""
        return Options(activation=self.activation)

    @property
    def forward_bytes(self) -> int:
        """Bytes that the forward must move in bfloat16: two arrays in, one out."""
        return 6 * self.M * self.F

    @property
    def backward_bytes(self) -> int:
        """Those of the backward: three arrays in, two out."""
        return 10 * self.M * self.F


REAL_CASES = (
    Case(name="llama3_1b_4k", M=4096, F=8192),
    Case(name="llama3_1b_16k", M=16384, F=8192),
    Case(name="llama3_8b_4k", M=4096, F=14336),
    Case(name="llama3_8b_16k", M=16384, F=14336),
    Case(name="gemma2_9b_4k", M=4096, F=14336, activation="gelu_tanh"),
    Case(name="gemma2_9b_16k", M=16384, F=14336, activation="gelu_tanh"),
)

ODD_CASES = (
    Case(name="one", M=1, F=1),
    Case(name="one_gelu", M=1, F=1, activation="gelu_tanh"),
    Case(name="primes", M=37, F=61),
    Case(name="primes_gelu", M=37, F=61, activation="gelu_tanh"),
    Case(name="whole_tiles", M=4, F=1024),
    Case(name="ragged_tiles_gelu", M=3, F=1032, activation="gelu_tanh"),
)


def make_inputs(
    case: Case, dtype: str, normal: Callable[[tuple[int, ...]], Any]
) -> tuple[Array, Array]:
    """Make gate and up; `normal` draws them from their shapes. Gates reach into both tails."""
    shape = (case.M, case.F)
    return jnp.asarray(3 * normal(shape), dtype), jnp.asarray(normal(shape), dtype)
