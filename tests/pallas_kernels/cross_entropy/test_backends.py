"""Which backend serves a call, and how the kernel lowers for CUDA without a GPU."""

from dataclasses import asdict, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    Unsupported,
    linear_cross_entropy,
    linear_cross_entropy_rows,
    pallas_triton,
)
from pallas_kernels.cross_entropy import api, chunks, triton
from pallas_kernels.cross_entropy.cases import REAL_CASES, Case, make_inputs
from pallas_kernels.cross_entropy.contract import Options, Wanted
from pallas_kernels.dispatch import Device, Problem, choose
from tests.pallas_kernels.drawing import normal
from tests.pallas_kernels.lowering import CALL, lowered, operands, results
from tests.tolerances import relative_error, tolerance

H100 = Device(platform="gpu", compute_capability=(9, 0))
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def problem(device=H100, dtype="bfloat16"):
    return Problem(op="linear_cross_entropy", device=device, dtype=dtype)


@pytest.mark.parametrize("dtype", SHORT)
def test_triton_serves_an_nvidia_gpu(dtype):
    assert choose("auto", api.BACKENDS, problem(dtype=dtype)).name == "triton"


REFUSALS = [
    (Device(platform="cpu"), "bfloat16", "it needs an NVIDIA GPU; the device is a cpu"),
    (replace(H100, compute_capability=(7, 5)), "bfloat16", "it needs compute capability 8.0"),
    (H100, "float64", "it computes in float32; the inputs are float64"),
]


@pytest.mark.parametrize(("device", "dtype", "reason"), REFUSALS)
def test_triton_refuses_and_auto_takes_plain_jax(device, dtype, reason):
    asked = problem(device, dtype)
    with pytest.raises(Unsupported, match=f"refused by triton: {reason}"):
        choose("triton", api.BACKENDS, asked)
    assert choose("auto", api.BACKENDS, asked).name == "xla"


@pytest.mark.parametrize("function", [linear_cross_entropy, linear_cross_entropy_rows])
@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the device serves it")
def test_forced_triton_says_what_the_device_lacks(function):
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        function(jnp.ones((1, 2)), jnp.ones((3, 2)), jnp.zeros(1, jnp.int32), backend="triton")


def test_without_pallas_triton_plain_jax_serves(monkeypatch):
    monkeypatch.setattr(pallas_triton, "plt", None)
    assert choose("auto", api.BACKENDS, problem()).name == "xla"
    with pytest.raises(Unsupported, match=r"interpret: this JAX has no jax\.exp"):
        choose("interpret", api.BACKENDS, problem())


def abstract(case, dtype):
    shapes = (((case.M, case.D), dtype), ((case.V, case.D), dtype), ((case.M,), "int32"))
    return [jax.ShapeDtypeStruct(*shape) for shape in shapes]


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("case", REAL_CASES, ids=lambda case: case.name)
def test_real_cases_lower_with_dz_in_the_inputs_dtype(case, dtype):
    run = partial(triton.forward, case.options, Wanted(x=True, head=False))
    text = lowered(run, *abstract(case, dtype))
    rows = chunks.rows_per_chunk(case.M, case.V, 4)
    assert operands(text) == [f"{rows}x{case.V}xf32", f"{rows}xi32"]
    assert results(text) == [f"{rows}xf32", f"{rows}x{case.V}x{SHORT[dtype]}"]
    aliased = "output_operand_aliases = [#stablehlo" in text
    assert aliased == (dtype == "float32")


def test_all_options_lower():
    case = replace(REAL_CASES[0], softcap=30.0, logit_scale=0.5, label_smoothing=0.1)
    run = partial(triton.forward, case.options, Wanted(x=True, head=True))
    text = lowered(run, *abstract(case, "bfloat16"))
    assert CALL in text


@pytest.mark.parametrize("V", [7, 128_256])
def test_losses_alone_lower_and_write_no_gradient(V):
    case = replace(REAL_CASES[0], V=V)
    run = partial(triton.forward, Options(), Wanted(x=False, head=False))
    text = lowered(run, *abstract(case, "bfloat16"))
    assert results(text) == [f"{chunks.rows_per_chunk(case.M, V, 4)}xf32"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("V", "softcap"), [(128_256, None), (256_000, 30.0), (4001, 2.0)])
def test_kernel_equals_plain_jax_on_the_device(V, softcap, dtype):
    case = Case(
        name="device", M=1031, D=256, V=V, softcap=softcap, logit_scale=1.5, label_smoothing=0.1
    )
    inputs = make_inputs(case, dtype, normal(0))

    def run(backend):
        function = partial(linear_cross_entropy, **asdict(case.options), backend=backend)
        loss, gradients = jax.jit(jax.value_and_grad(function, (0, 1)))(*inputs)
        return [np.asarray(array, np.float64) for array in (loss, *gradients)]

    (loss, *gradients), (expected, *wanted) = run("triton"), run("xla")
    assert relative_error(loss, expected) <= tolerance(dtype, "cross_entropy_forward")
    for actual, gradient in zip(gradients, wanted, strict=True):
        assert relative_error(actual, gradient) <= tolerance(dtype, "cross_entropy_gradient")
