"""The kernel lowers for CUDA at real shapes, and writes over what it read."""

import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.adam_8bit import triton, zero_moments
from pallas_kernels.adam_8bit.cases import ODD_CASES, REAL_CASES
from pallas_kernels.adam_8bit.contract import Decays
from tests.pallas_kernels.lowering import lowered, operands

SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@pytest.mark.parametrize(
    ("dtype", "weight_decay"), [("float32", 0), ("float32", 0.1), ("bfloat16", 0.1), ("float16", 0)]
)
@pytest.mark.parametrize("case", [*REAL_CASES, *ODD_CASES], ids=lambda case: case.name)
def test_step_lowers(case, dtype, weight_decay):
    decays = Decays(b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)

    def step(p, g, moments):
        scalars = decays.scalars(jnp.float32(1e-3), jnp.int32(3))
        return triton.forward(p, g, moments, scalars, decays)

    p = jax.ShapeDtypeStruct((case.L, case.N), dtype)
    text = lowered(step, p, p, jax.eval_shape(lambda: zero_moments(case.L, case.N)))
    blocks = -(-case.N // 256)
    codes, absmax = f"{case.L}x{blocks * 256}xui8", f"{case.L}x{blocks}xf32"
    values = f"{case.L}x{case.N}x{SHORT[dtype]}"
    tables = ["256xf32", "255xf32"] * 2
    assert operands(text) == [values, codes, codes, values, absmax, absmax, "3xf32", *tables]
    aliases = re.findall(r"output_tuple_indices = \[(\d)\],\s*operand_index = (\d)", text)
    written_over = [("1", "1"), ("2", "2")]
    assert sorted(aliases) == ([("0", "0")] if dtype == "float32" else []) + written_over
