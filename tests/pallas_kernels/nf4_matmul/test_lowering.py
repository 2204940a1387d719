"""The kernel lowers for CUDA at real shapes, on a machine that has no GPU."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.nf4_matmul import triton
from pallas_kernels.nf4_matmul.cases import REAL_CASES, make_inputs
from pallas_kernels.nf4_matmul.plan import make_plan
from tests.pallas_kernels.lowering import lowered, operands, results

BY_NAME = {case.name: case for case in REAL_CASES}
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def text_of(case, dtype):
    x, stack = jax.eval_shape(lambda: make_inputs(case, dtype, jnp.zeros))
    return lowered(triton.forward, x, stack, jax.ShapeDtypeStruct((), jnp.int32))


def check(case, dtype):
    stack = case.stack
    text = text_of(case, dtype)
    half, blocks = stack.O * stack.I // 2, stack.O * stack.I // 64
    absmax = [f"{stack.L}x{blocks}x{'ui8' if stack.nested else 'f32'}", "16xf32"]
    nested = [f"{stack.L}x{-(-blocks // 256)}xf32", "256xf32", f"{stack.L}xf32"]
    x, codes = f"{case.M * stack.I}x{SHORT[dtype]}", f"{stack.L}x{half}xui8"
    assert operands(text) == [x, "1xi32", codes, *absmax, *(nested if stack.nested else [])]
    assert "slice" not in text
    splits = make_plan(case.M, (stack.O, stack.I), stack.block, dtype).splits
    written = SHORT[dtype] if splits == 1 else "f32"
    assert results(text) == [f"{splits * case.M * stack.O}x{written}"]


@pytest.mark.parametrize("case", REAL_CASES, ids=lambda case: case.name)
def test_lowers_and_reads_the_whole_stack(case):
    check(case, "bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 8, 32])
def test_lowers_in_other_dtypes(rows, dtype):
    check(BY_NAME[f"llama3_8b_q_{rows}"], dtype)


@pytest.mark.parametrize("case", REAL_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_of_a_sum_are_whole_steps_and_write_less_than_the_weight(case, dtype):
    stack = case.stack
    plan = make_plan(case.M, (stack.O, stack.I), stack.block, dtype)
    assert stack.I % (plan.columns * plan.splits) == 0
    assert plan.columns % stack.block == 0
    if plan.splits > 1:
        assert 4 * plan.splits * case.M * stack.O <= stack.stored_bytes
