"""What the benchmark of the linear cross-entropy compares: ours and the definition.

Only x is differentiated, as in LoRA training, where the head is frozen.
"""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.cross_entropy.api import linear_cross_entropy
from pallas_kernels.cross_entropy.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.cross_entropy.reference import linear_cross_entropy_ref

CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Make the differentiated arguments and the others."""
    x, head, labels = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return (x,), (head, labels)


def _ours(case: Case, arrays: tuple[Array, ...], rest: tuple[Array, ...]) -> Array:
    return linear_cross_entropy(*arrays, *rest, softcap=case.softcap, chunk_rows=case.chunk_rows)


def _reference(case: Case, arrays: tuple[Array, ...], rest: tuple[Array, ...]) -> Array:
    return linear_cross_entropy_ref(case.options, *arrays, *rest)


PROVIDERS = {"ours": _ours, "reference": _reference}
