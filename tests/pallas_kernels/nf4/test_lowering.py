"""The kernels lower for CUDA at real shapes, on a machine that has no GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.nf4 import Beside, quantize_triton, triton
from pallas_kernels.nf4.cases import REAL_CASES, Case, make_stack
from tests.pallas_kernels.drawing import FLOAT16
from tests.pallas_kernels.lowering import SHORT, kernels, lowered, operands

CASES = (*REAL_CASES, Case(name="rows_of_172", L=5, O=172, I=64))
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_dequantisation_lowers_and_reads_the_whole_stack(case, dtype):
    stack = jax.eval_shape(lambda: make_stack(case, "bfloat16", jnp.zeros))
    layer = jax.ShapeDtypeStruct((), jnp.int32)
    text = lowered(lambda stack, layer: triton.forward([stack], layer, dtype), stack, layer)
    half, blocks = case.O * case.I // 2, case.O * case.I // 64
    absmax = [f"{case.L}x{blocks}x{'ui8' if case.nested else 'f32'}", "16xf32"]
    nested = [f"{case.L}x{-(-blocks // 256)}xf32", "256xf32", f"{case.L}xf32"]
    codes = f"{case.L}x{half}xui8"
    assert operands(text) == ["1xi32", codes, *absmax, *(nested if case.nested else [])]
    assert "slice" not in text


@pytest.mark.parametrize("name", ["llama3_8b_gate", "rows_of_172"])
def test_columns_beside_the_weight_lower(name):
    case = BY_NAME[name]
    stack = jax.eval_shape(lambda: make_stack(case, "bfloat16", jnp.zeros))
    columns = jax.ShapeDtypeStruct((case.L, 2 * case.O, 16), "bfloat16")

    def wide(stack, columns):
        beside = Beside(columns, jnp.int32(1), 0, (0, 16), 32)
        return triton.forward([stack, stack], jnp.int32(1), "bfloat16", beside)

    text = lowered(wide, stack, columns)
    size = f"{2 * case.O * (case.I + 32)}xbf16"
    first, second = kernels(text)
    assert first[0][1] == second[0][1] == f"{case.L}x{case.O * case.I // 2}xui8"
    assert second[0][-1] == size  # it writes into what the first gave
    assert first[1] == second[1] == [size]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
@pytest.mark.parametrize("name", ["llama3_8b_gate", "llama3_8b_k", "rows_of_172"])
def test_quantisation_lowers(name, dtype):
    case = BY_NAME[name]
    weight = jax.ShapeDtypeStruct((case.O * case.I,), dtype)
    text = lowered(partial(quantize_triton.forward, block=64), weight)
    assert operands(text)[0] == f"{case.O * case.I}x{SHORT[dtype]}"
