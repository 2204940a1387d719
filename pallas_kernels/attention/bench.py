"""What the benchmark of attention compares: ours, each backend by name and the definition."""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.attention.contract import Inputs
from pallas_kernels.attention.reference import attention_ref

FORMULA = """o = softmax(cap(scale * q k^T) + mask) v, causal, grouped heads
Work: 4 H operations forward and 10 H backward for every head and visible pair."""
CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[Array, ...], tuple[Array | None, ...]]:
    """Make the differentiated arguments and the others."""
    inputs = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return tuple(inputs[:3]), tuple(inputs[3:])


def flops(case: Case) -> int:
    """Operations of the forward: two products over the pairs that see each other."""
    return 4 * case.B * case.N * case.H * _pairs(case)


def flops_both(case: Case) -> int:
    """Operations with the gradient: five products more, of which one makes the scores again."""
    return 7 * flops(case) // 2


def moved_bytes(case: Case) -> int:
    """Bytes of the forward in bfloat16: q, k and v read, o written."""
    return 4 * case.B * case.H * (case.T * case.N + case.S * case.K)


def moved_bytes_both(case: Case) -> int:
    """Bytes with the gradient: q, k, v, o and do read, dq, dk and dv written."""
    return 3 * moved_bytes(case)


def _pairs(case: Case) -> int:
    """Pairs of a query and a key that it sees, of one row and head."""
    pairs = 0
    for t in range(case.T):
        place = t + case.q_offset
        first = 0 if case.document is None else t // case.document * case.document
        if case.window is not None:
            first = max(first, place - case.window + 1)
        pairs += max(min(place + 1, case.S) - first, 0)
    return pairs


def _run(
    backend: str, case: Case, arrays: tuple[Array, ...], rest: tuple[Array | None, ...]
) -> Array:
    inputs = Inputs(*arrays, *rest)
    return attention(
        inputs.q,
        inputs.k,
        inputs.v,
        scale=case.options.scale,
        window=case.window,
        softcap=case.softcap,
        q_segment_ids=inputs.q_segment_ids,
        kv_segment_ids=inputs.kv_segment_ids,
        q_offset=case.q_offset,
        backend=backend,
    )


def _reference(case: Case, arrays: tuple[Array, ...], rest: tuple[Array | None, ...]) -> Array:
    return attention_ref(case.options, Inputs(*arrays, *rest))


PROVIDERS = {
    "ours": partial(_run, "auto"),
    **{name: partial(_run, name) for name in ("triton", "cudnn", "xla")},
    "reference": _reference,
}
