"""The kernel lowers for CUDA at real shapes, on a machine that has no GPU."""

from typing import Any

import jax
import pytest

from pallas_kernels.lora_linear import triton
from pallas_kernels.lora_linear.cases import REAL_CASES, Case
from pallas_kernels.lora_linear.group import Part
from tests.pallas_kernels.drawing import FLOAT16
from tests.pallas_kernels.lowering import lowered, operands


@pytest.mark.parametrize("dtype", ["bfloat16", FLOAT16, "float32"])
@pytest.mark.parametrize("case", REAL_CASES, ids=lambda case: case.name)
def test_slopes_lower_with_dy_as_one_operand(case: Case, dtype: str) -> None:
    M, O, R = case.M, max(case.O), case.R[0]
    shapes = ((M, O), (O, R), (M, R))
    part = Part(0, O, 0, R)

    def slopes(dy: jax.Array, b: jax.Array, p: jax.Array) -> Any:
        return triton.slopes([dy], None, b, p, [part], 64)

    text = lowered(slopes, *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    letter = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[dtype]
    assert operands(text) == [f"{rows}x{columns}x{letter}" for rows, columns in shapes]
