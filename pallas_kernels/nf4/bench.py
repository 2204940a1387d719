"""What the benchmark of dequantisation compares: the best backend and plain JAX.

There is nothing to differentiate: 4-bit weights are frozen.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.nf4.api import dequantize_nf4
from pallas_kernels.nf4.cases import REAL_CASES, Case, make_stack
from pallas_kernels.nf4.contract import NF4

FORMULA = """w_i = bfloat16(table[code_i] * absmax_{i // 64}), absmax quantised itself if nested
Bytes an element: 0.5 of codes, 0.016 of absmax, 2 written."""
CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[()], tuple[NF4, Int[Array, ""]]]:
    """Make the differentiated arguments, which are none, and the others."""
    stack = make_stack(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return (), (stack, jnp.asarray(case.L // 2, jnp.int32))


def input_sets(
    case: Case, arrays: tuple[()], rest: tuple[NF4, Int[Array, ""]]
) -> list[tuple[tuple[()], tuple[NF4, Int[Array, ""]]]]:
    """One layer after the other: a stack is larger than the cache, a layer is not."""
    stack, _ = rest
    return [(arrays, (stack, jnp.asarray(layer, jnp.int32))) for layer in range(case.L)]


def moved_bytes(case: Case) -> int:
    """Bytes that the forward must move."""
    return case.moved_bytes


def _run(backend: str, case: Case, arrays: tuple[()], rest: tuple[NF4, Int[Array, ""]]) -> Array:
    del case, arrays
    return dequantize_nf4(*rest, "bfloat16", backend=backend)


PROVIDERS = {"ours": partial(_run, "auto"), "xla": partial(_run, "xla")}
