"""What the benchmark of attention compares: ours, each backend by name and the definition."""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.attention.contract import Inputs
from pallas_kernels.attention.reference import attention_ref

CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[Array, ...], tuple[Array | None, ...]]:
    """Make the differentiated arguments and the others."""
    inputs = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return tuple(inputs[:3]), tuple(inputs[3:])


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
