"""The norm's value and gradients against transformers and our own definition, on each backend."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pallas_kernels import add_rms_norm, rms_norm
from pallas_kernels.rms_norm.cases import ODD_CASES, Case, make_inputs
from pallas_kernels.rms_norm.reference import add_rms_norm_ref
from tests.pallas_kernels.compiled import exact_jit, quick_jit
from tests.pallas_kernels.drawing import FLOAT16, normal
from tests.tolerances import relative_error, tolerance

LLAMA = Case(name="llama", M=19, D=48)
GEMMA = Case(name="gemma", M=19, D=48, unit_offset=True)
over_cases = pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
over_forms = pytest.mark.parametrize("case", [LLAMA, GEMMA], ids=lambda case: case.name)
over_dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
over_backends = pytest.mark.parametrize(
    "backend", ["xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu)]
)


def cotangents(case, dtype):
    draw = normal(5)
    return tuple(jnp.asarray(draw((case.M, case.D)), dtype) for _ in range(2))


def pulled(function, inputs, given):
    """(y, h) and the gradients of x, of the residual if there is one, and of the weight."""

    def run(inputs, given):
        pair, pull = jax.vjp(function, *inputs)
        return *pair, *jax.tree.leaves(pull(given))

    return quick_jit(run)(inputs, given)


def ours(case, backend="xla"):
    options = case.options
    return partial(add_rms_norm, eps=options.eps, unit_offset=options.unit_offset, backend=backend)


def torch_norm(case, inputs, given):
    """Values and gradients of transformers' own module in float64, as `pulled` orders them."""
    family = Gemma2RMSNorm if case.unit_offset else LlamaRMSNorm
    module = family(case.D, eps=case.options.eps).double()
    x, residual, weight = (None if a is None else _leaf(a) for a in inputs)
    module.weight = torch.nn.Parameter(weight.detach())
    if case.unit_offset:
        module.forward = partial(_double_gemma, module)
    h = x if residual is None else x + residual
    y = module(h)
    torch.autograd.backward([y, h], [torch.tensor(np.asarray(g, np.float64)) for g in given])
    gradients = [a.grad for a in (x, residual, module.weight) if a is not None]
    return [a.detach().numpy() for a in (y, h, *gradients)]


def _double_gemma(module, x):
    """Gemma2RMSNorm.forward without its casts to float32."""
    return module._norm(x) * (1.0 + module.weight)


def _leaf(array):
    return torch.tensor(np.asarray(array, np.float64), requires_grad=True)


def rounded_sum(inputs):
    """The same without a residual: the stream goes on rounded, and the norm is of what goes on."""
    if inputs.residual is None:
        return inputs
    return inputs._replace(x=inputs.x + inputs.residual, residual=None)


def check(actual, expected, dtype):
    for n, (one, other) in enumerate(zip(actual, expected, strict=True)):
        quantity = "rms_norm_forward" if n < 2 else "rms_norm_gradient"
        assert relative_error(one, other) <= tolerance(dtype, quantity), n


@over_cases
def test_plain_jax_equals_transformers_in_float64(case, monkeypatch):
    # LlamaRMSNorm casts to float32, whatever it is given.
    monkeypatch.setattr(torch, "float32", torch.float64)
    with jax.enable_x64(True):
        inputs, given = make_inputs(case, "float64", normal(1)), cotangents(case, "float64")
        actual = pulled(ours(case), inputs, given)
        assert {a.dtype.name for a in actual} == {"float64"}
    check(actual, torch_norm(case, inputs, given), "float64")


@over_backends
@over_dtypes
@over_forms
def test_equals_transformers_of_the_rounded_inputs(case, dtype, backend, monkeypatch):
    monkeypatch.setattr(torch, "float32", torch.float64)
    inputs, given = make_inputs(case, dtype, normal(1)), cotangents(case, dtype)
    expected = torch_norm(case, rounded_sum(inputs), given)
    y, h, dx, d_residual, d_weight = pulled(ours(case, backend), inputs, given)
    assert (y.dtype, dx.dtype, d_weight.dtype) == (dtype, dtype, dtype)
    np.testing.assert_array_equal(d_residual, dx)
    check((y, h, dx, d_weight), expected, dtype)


@over_backends
@over_forms
@pytest.mark.parametrize("dtype", ["bfloat16", FLOAT16])
def test_casts_in_the_order_of_transformers(case, dtype, backend):
    """Bit-equal but for the few values that a sum in another order rounds the other way."""
    inputs = make_inputs(case, dtype, normal(3))
    y, h = exact_jit(ours(case, backend))(*inputs)
    family = Gemma2RMSNorm if case.unit_offset else LlamaRMSNorm
    module = family(case.D, eps=case.options.eps).to(getattr(torch, dtype))
    with torch.no_grad():
        module.weight.copy_(_half(inputs.weight, dtype))
        expected = module(_half(h, dtype)).float().numpy()
    differing = np.asarray(y, np.float32) != expected
    assert differing.mean() < 0.01


def _half(array, dtype):
    return torch.tensor(np.asarray(array, np.float32)).to(getattr(torch, dtype))


@over_backends
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@over_cases
def test_equals_the_definition_in_float64(case, dtype, backend):
    inputs, given = make_inputs(case, dtype, normal(2)), cotangents(case, dtype)
    y, h, dx, *d_residual, d_weight = pulled(ours(case, backend), inputs, given)
    for same in d_residual:
        np.testing.assert_array_equal(same, dx)
    x, _, weight = rounded_sum(inputs)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda a: a.astype("float64"), ((x, None, weight), given))
        expected = pulled(partial(add_rms_norm_ref, case.options), *exact)
    check((y, h, dx, d_weight), expected, dtype)


@over_backends
@pytest.mark.parametrize("unit_offset", [False, True])
def test_weight_may_be_wider_than_the_rows(unit_offset, backend):
    case = Case(name="wide", M=5, D=24, unit_offset=unit_offset)
    inputs, given = make_inputs(case, "bfloat16", normal(2)), cotangents(case, "bfloat16")
    inputs = inputs._replace(weight=inputs.weight.astype("float32") + 1e-3)
    expected = pulled(partial(add_rms_norm_ref, case.options), inputs, given)
    actual = pulled(ours(case, backend), inputs, given)
    assert actual[-1].dtype == "float32"
    check(actual, expected, "bfloat16")


@over_backends
@over_forms
def test_norm_alone_is_that_of_the_sum_with_nothing(case, backend):
    x, _, weight = make_inputs(case, "float32", normal(4))
    dy, _ = cotangents(case, "float32")
    run = partial(rms_norm, eps=1e-5, unit_offset=case.unit_offset, backend=backend)

    def alone(x, weight, dy):
        y, pull = jax.vjp(run, x, weight)
        return y, x, *pull(dy)

    def summed(x, residual, weight):
        return add_rms_norm_ref(case.options, x, residual, weight)

    expected = pulled(summed, (x, None, weight), (dy, jnp.zeros_like(x)))
    check(quick_jit(alone)(x, weight, dy), expected, "float32")


@over_backends
def test_zero_rows_stay_finite(backend):
    case = Case(name="zeros", M=3, D=20)
    inputs = make_inputs(case, "float32", normal(0))
    inputs = inputs._replace(x=jnp.zeros_like(inputs.x), residual=jnp.zeros_like(inputs.x))
    y, _, dx, *_ = pulled(ours(case, backend), inputs, cotangents(case, "float32"))
    assert (y == 0).all()
    assert jnp.isfinite(dx).all()
