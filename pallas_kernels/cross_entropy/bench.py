"""What the benchmark of the linear cross-entropy compares: ours, plain JAX and the definition.

Only x is differentiated, as in LoRA training, where the head is frozen.
"""

from dataclasses import asdict
from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.cross_entropy.api import linear_cross_entropy
from pallas_kernels.cross_entropy.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.cross_entropy.reference import linear_cross_entropy_ref

FORMULA = """z = cap(x head^T),  cap(z) = softcap * tanh(z / softcap)
loss = sum over rows with labels[m] != -100 of (logsumexp(z[m]) - z[m, labels[m]])
dx = (softmax(z) - onehot(labels)) * (1 - (z / softcap)^2) head, in the forward
Work: two products of 2 M D V operations each, one without the gradient."""
CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Make the differentiated arguments and the others."""
    x, head, labels = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return (x,), (head, labels)


def flops(case: Case) -> int:
    """Operations of the forward: the product that makes the logits."""
    return 2 * case.M * case.D * case.V


def flops_both(case: Case) -> int:
    """Operations with dx, one more product."""
    return 2 * flops(case)


def _run(backend: str, case: Case, arrays: tuple[Array, ...], rest: tuple[Array, ...]) -> Array:
    return linear_cross_entropy(*arrays, *rest, **asdict(case.options), backend=backend)


def _reference(case: Case, arrays: tuple[Array, ...], rest: tuple[Array, ...]) -> Array:
    return linear_cross_entropy_ref(case.options, *arrays, *rest)


PROVIDERS = {"ours": partial(_run, "auto"), "xla": partial(_run, "xla"), "reference": _reference}
