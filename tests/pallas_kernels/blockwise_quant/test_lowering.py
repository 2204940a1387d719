"""The kernels lower for CUDA at real shapes, and refuse what they cannot address."""

import jax
import pytest

from pallas_kernels.blockwise_quant import triton
from pallas_kernels.blockwise_quant.api import QUANTIZE
from pallas_kernels.blockwise_quant.cases import ODD_CASES, REAL_CASES
from pallas_kernels.blockwise_quant.contract import zeros
from pallas_kernels.dispatch import Device, Problem, choose
from tests.pallas_kernels.lowering import lowered, operands

CASES = pytest.mark.parametrize("case", [*REAL_CASES, *ODD_CASES], ids=lambda case: case.name)
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
H100 = Device(platform="gpu", compute_capability=(9, 0))


@pytest.mark.parametrize("dtype", SHORT)
@CASES
def test_quantisation_lowers(case, dtype):
    x = jax.ShapeDtypeStruct((case.L, case.N), dtype)
    text = lowered(lambda x: triton.quantize(x, signed=case.signed), x)
    assert operands(text) == [f"{case.L}x{case.N}x{SHORT[dtype]}", "255xf32"]


@pytest.mark.parametrize("dtype", SHORT)
@CASES
def test_dequantisation_lowers(case, dtype):
    blocks = jax.eval_shape(lambda: zeros(case.L, case.N, signed=case.signed))
    text = lowered(lambda blocks: triton.dequantize(blocks, case.N, dtype), blocks)
    count = -(-case.N // 256)
    codes = f"{case.L}x{count * 256}xui8"
    assert operands(text) == [codes, f"{case.L}x{count}xf32", "256xf32"]


@pytest.mark.parametrize(
    ("L", "N", "dtype", "name"),
    [
        (1, 1, "float32", "triton"),
        (1, 2**31 - 256, "float32", "triton"),
        (1, 2**31 - 255, "float32", "xla"),
        (2**20, 4095, "bfloat16", "triton"),
        (2**20 - 1, 4095, "bfloat16", "xla"),
        (1, 1, "float64", "xla"),
    ],
)
def test_backend_is_chosen_by_what_the_kernel_can_address(L, N, dtype, name):
    problem = Problem(op="quantize_blockwise", device=H100, dtype=dtype, sizes={"L": L, "N": N})
    assert choose("auto", QUANTIZE, problem).name == name
