"""The kernels lower for CUDA at real shapes, on a machine that has no GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import triton
from pallas_kernels.attention.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.dispatch import Device
from tests.pallas_kernels.drawing import FLOAT16
from tests.pallas_kernels.lowering import CALL, lowered

WHOLE_ROWS = [case for case in REAL_CASES if case.T == case.S]
CASES = [
    *WHOLE_ROWS,
    Case(name="ragged", B=3, T=397, S=397, N=6, K=2, H=80, document=100, window=50, softcap=9.0),
    *(Case(name=f"heads_of_{H}", B=1, T=512, S=512, N=4, K=1, H=H) for H in (8, 32, 64)),
]


def forward_and_backward(options, inputs, dy):
    y, residuals = triton.forward(options, inputs)
    return y, triton.backward(options, residuals, dy)


@pytest.mark.parametrize("dtype", ["bfloat16", FLOAT16, "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_and_backward_lower(case, dtype):
    inputs = jax.eval_shape(lambda: make_inputs(case, dtype, jnp.zeros))
    text = lowered(partial(forward_and_backward, case.options), inputs, inputs.q)
    assert text.count(CALL) == 3
    assert f"tensor<{case.T}x{case.S}x" not in text


def test_traced_window_lowers():
    case = CASES[0]
    inputs = jax.eval_shape(lambda: make_inputs(case, "bfloat16", jnp.zeros))
    inputs = inputs._replace(window=jax.ShapeDtypeStruct((), jnp.int32))
    text = lowered(partial(forward_and_backward, case.options), inputs, inputs.q)
    assert text.count(CALL) == 3


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0)])
@pytest.mark.parametrize("H", [64, 128, 256])
def test_every_cut_of_every_device_lowers(H, capability, monkeypatch):
    device = Device(platform="gpu", compute_capability=capability)
    monkeypatch.setattr(triton, "current_device", lambda: device)
    case = Case(name="cut", B=1, T=512, S=512, N=4, K=2, H=H, document=200)
    inputs = jax.eval_shape(lambda: make_inputs(case, "bfloat16", jnp.zeros))
    text = lowered(partial(forward_and_backward, case.options), inputs, inputs.q)
    assert text.count(CALL) == 3
