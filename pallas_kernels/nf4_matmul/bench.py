"""What the benchmark of 4-bit products compares: the best backend, and a dense weight made first.

There is nothing to differentiate: decoding has no backward.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.nf4 import NF4
from pallas_kernels.nf4_matmul import xla
from pallas_kernels.nf4_matmul.api import nf4_matmul
from pallas_kernels.nf4_matmul.cases import REAL_CASES, Case, make_inputs

CASES = {case.name: case for case in REAL_CASES}

Inputs = tuple[Float[Array, "M I"], NF4, Int[Array, ""]]


def arguments(case: Case) -> tuple[tuple[()], Inputs]:
    """Make the differentiated arguments, which are none, and the others."""
    x, stack = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return (), (x, stack, jnp.asarray(case.stack.L // 2, jnp.int32))


def moved_bytes(case: Case) -> int:
    """Bytes that the product must move."""
    return case.moved_bytes


def _ours(case: Case, arrays: tuple[()], rest: Inputs) -> Array:
    del case, arrays
    return nf4_matmul(*rest)


def _dense(requested: str, case: Case, arrays: tuple[()], rest: Inputs) -> Array:
    del case, arrays
    return xla.forward(*rest, requested)


# "dense" dequantises by the best backend of that op, "xla" in plain JAX.
PROVIDERS = {"ours": _ours, "dense": partial(_dense, "auto"), "xla": partial(_dense, "xla")}
