"""What the benchmark of a step compares: the best backend and plain JAX.

There is nothing to differentiate.
"""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.adam_8bit.api import adam_8bit
from pallas_kernels.adam_8bit.cases import REAL_CASES, Case
from pallas_kernels.adam_8bit.contract import Decays, Moments, zero_moments

CASES = {case.name: case for case in REAL_CASES}
DECAYS = Decays(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01)


def arguments(case: Case) -> tuple[tuple[()], tuple[Array, Array, Moments]]:
    """Make the differentiated arguments, which are none, and the others."""
    keys = jax.random.split(jax.random.key(0))
    p, g = (jax.random.normal(key, (case.L, case.N)) for key in keys)
    first = adam_8bit(p, g, zero_moments(case.L, case.N), learning_rate=1e-3, step=1, decays=DECAYS)
    return (), (p, g, first[1])


def moved_bytes(case: Case) -> int:
    """Bytes that the forward must move."""
    return case.moved_bytes


def _run(
    backend: str, case: Case, arrays: tuple[()], rest: tuple[Array, Array, Moments]
) -> tuple[Array, Moments]:
    del case, arrays
    return adam_8bit(*rest, learning_rate=1e-3, step=2, decays=DECAYS, backend=backend)


PROVIDERS = {"ours": partial(_run, "auto"), "xla": partial(_run, "xla")}
