"""What the benchmark of quantisation and of the way back compares: the best backend and plain JAX.

There is nothing to differentiate.
"""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.blockwise_quant.api import dequantize_blockwise, quantize_blockwise
from pallas_kernels.blockwise_quant.cases import REAL_CASES, Case
from pallas_kernels.blockwise_quant.contract import Blockwise

CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[()], tuple[Array | Blockwise]]:
    """Make the differentiated arguments, which are none, and the others."""
    x = jax.random.normal(jax.random.key(0), (case.L, case.N))
    x = x if case.signed else x * x
    return (), (quantize_blockwise(x, signed=case.signed) if case.back else x,)


def moved_bytes(case: Case) -> int:
    """Bytes that the forward must move."""
    return case.moved_bytes


def _run(backend: str, case: Case, arrays: tuple[()], rest: tuple[Array | Blockwise]) -> Array:
    del arrays
    (given,) = rest
    if isinstance(given, Blockwise):
        return dequantize_blockwise(given, case.N, backend=backend)
    return quantize_blockwise(given, signed=case.signed, backend=backend).codes


PROVIDERS = {"ours": partial(_run, "auto"), "xla": partial(_run, "xla")}
