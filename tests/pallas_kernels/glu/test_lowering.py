"""The kernels lower for CUDA at real shapes, on a machine that has no GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.glu import triton
from pallas_kernels.glu.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.glu.contract import Residuals
from tests.pallas_kernels.lowering import SHORT, accesses, lowered, operands, results

CASES = (*REAL_CASES, Case(name="one", M=1, F=1), Case(name="primes", M=37, F=61))
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
over_dtypes = pytest.mark.parametrize("dtype", SHORT)


@over_dtypes
@over_cases
def test_forward_lowers_and_moves_each_array_once(case, dtype):
    inputs = jax.eval_shape(lambda: make_inputs(case, dtype, jnp.zeros))
    text = lowered(lambda *arrays: triton.forward(case.options, *arrays)[0], *inputs)
    flat = f"{case.M * case.F}x{SHORT[dtype]}"
    assert operands(text) == [flat] * 2
    assert results(text) == [flat]


@over_dtypes
@over_cases
def test_backward_lowers_and_is_one_pass(case, dtype):
    gate, up = jax.eval_shape(lambda: make_inputs(case, dtype, jnp.zeros))
    text = lowered(partial(triton.backward, case.options), Residuals(gate, up), gate)
    flat = f"{case.M * case.F}x{SHORT[dtype]}"
    assert operands(text) == [flat] * 3
    assert results(text) == [flat] * 2


@pytest.mark.parametrize(("F", "ragged"), [(triton.FORWARD_TILE, False), (1, True), (2049, True)])
def test_ragged_tiles_are_masked(F, ragged):
    case = Case(name="ragged", M=1, F=F)
    gate, up = jax.eval_shape(lambda: make_inputs(case, "float32", jnp.zeros))
    forward = accesses(partial(triton.forward, case.options), gate, up)
    backward = accesses(partial(triton.backward, case.options), Residuals(gate, up), gate)
    assert (forward, backward) == (((3, 0), (5, 0)) if ragged else ((0, 3), (0, 5)))
