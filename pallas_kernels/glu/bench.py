"""What the benchmark of the gated activation compares: the best backend and plain JAX."""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.glu.api import glu
from pallas_kernels.glu.cases import REAL_CASES, Case, make_inputs

FORMULA = "y = act(gate) up; d_up = dy act(gate), d_gate = dy up act'(gate)"

CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[Array, Array], tuple[()]]:
    """Make the differentiated arguments and the others, which are none."""
    return make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0))), ()


def moved_bytes(case: Case) -> int:
    """Bytes that the forward must move."""
    return case.forward_bytes


def moved_bytes_both(case: Case) -> int:
    """Bytes that the forward and then the backward must move."""
    return case.forward_bytes + case.backward_bytes


def _run(backend: str, case: Case, arrays: tuple[Array, Array], rest: tuple[()]) -> Array:
    del rest
    return glu(*arrays, activation=case.activation, backend=backend)


PROVIDERS = {"ours": partial(_run, "auto"), "xla": partial(_run, "xla")}
