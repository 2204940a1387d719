"""The kernels lower for CUDA at real shapes, on a machine that has no GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.rms_norm import triton
from pallas_kernels.rms_norm.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.rms_norm.contract import Residuals, Wanted
from tests.pallas_kernels.lowering import SHORT, accesses, lowered, operands, results

CASES = (
    *REAL_CASES,
    Case(name="one", M=1, D=1),
    Case(name="primes", M=37, D=53),
    Case(name="longest", M=3, D=triton.LONGEST, unit_offset=True),
)
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
over_dtypes = pytest.mark.parametrize("dtype", SHORT)


def types(case, dtype):
    """Those of rows, of the weight and of the statistics."""
    return f"{case.M}x{case.D}x{SHORT[dtype]}", f"{case.D}x{SHORT[dtype]}", f"{case.M}xf32"


@over_dtypes
@over_cases
def test_forward_lowers_and_moves_each_array_once(case, dtype):
    inputs = jax.eval_shape(lambda: make_inputs(case, dtype, jnp.zeros))
    text = lowered(partial(triton.forward, case.options), *inputs)
    row, weight, statistics = types(case, dtype)
    assert operands(text) == [weight, *[row] * (1 + case.adds)]
    assert results(text) == [statistics, *[row] * (1 + case.adds)]


@over_dtypes
@over_cases
def test_backward_of_a_frozen_weight_lowers_and_is_one_pass(case, dtype):
    x, _, weight = jax.eval_shape(lambda: make_inputs(case, dtype, jnp.zeros))
    kept = Residuals(x, weight, jax.ShapeDtypeStruct((case.M,), "float32"))
    run = partial(triton.backward, case.options, Wanted(weight=False))
    text = lowered(run, kept, x, x if case.adds else None)
    row, weight, statistics = types(case, dtype)
    assert operands(text) == [weight, statistics, *[row] * (2 + case.adds)]
    assert results(text) == [row]
    assert "stablehlo.reduce" not in text


@pytest.mark.parametrize("D", [1, 64, 256, 2047, 2048, 3584, 14336, triton.LONGEST])
def test_tile_holds_whole_rows_and_fits_a_program(D):
    rows, width = triton.tile(D)
    assert D <= width < 2 * D or D == width == 1
    assert rows * width == max(triton.TILE, width)
    assert rows * width <= 1024 * 32


# Rows that do not fill the programs, columns that do not fill their width, both, neither.
@pytest.mark.parametrize(
    ("M", "D", "masked"), [(3, 64, 5), (128, 48, 5), (3, 48, 6), (64, 64, 0), (3, 4096, 0)]
)
def test_ragged_tiles_are_masked(M, D, masked):
    case = Case(name="ragged", M=M, D=D)
    inputs = jax.eval_shape(lambda: make_inputs(case, "float32", jnp.zeros))
    assert accesses(partial(triton.forward, case.options), *inputs) == (masked, 6 - masked)
    kept = Residuals(inputs.x, inputs.weight, jax.ShapeDtypeStruct((M,), "float32"))
    run = partial(triton.backward, case.options, Wanted(weight=False))
    assert accesses(run, kept, inputs.x, inputs.x) == (masked, 6 - masked)
