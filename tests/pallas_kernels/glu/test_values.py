"""The gated activation's value and gradients against torch and our own definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from pallas_kernels import glu
from pallas_kernels.glu.cases import ODD_CASES, Case, make_inputs
from pallas_kernels.glu.reference import glu_ref
from tests.pallas_kernels.compiled import exact_jit, quick_jit
from tests.pallas_kernels.drawing import FLOAT16, normal
from tests.tolerances import relative_error, tolerance

# The names of an MLP's `hidden_act`.
MODULES = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
over_cases = pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
over_activations = pytest.mark.parametrize("activation", MODULES)
over_backends = pytest.mark.parametrize(
    "backend", ["xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu)]
)


def ours(case, backend):
    return partial(glu, activation=case.activation, backend=backend)


def cotangent(gate):
    return jnp.asarray(normal(7)(gate.shape), gate.dtype)


def pulled(function, gate, up, dy=None, jit=quick_jit):
    """The value, d_gate and d_up."""
    dy = cotangent(gate) if dy is None else dy

    def run(gate, up, dy):
        y, pull = jax.vjp(function, gate, up)
        return y, *pull(dy)

    return jit(run)(gate, up, dy)


def torch_glu(case, gate, up, dtype="float64"):
    """What an MLP of transformers computes between its projections, by torch's autograd."""
    dy = np.asarray(cotangent(gate), np.float64)
    leaves = [
        torch.tensor(np.asarray(a, np.float64)).to(getattr(torch, dtype)).requires_grad_()
        for a in (gate, up)
    ]
    y = ACT2FN[MODULES[case.activation]](leaves[0]) * leaves[1]
    y.backward(torch.tensor(dy).to(y.dtype))
    return [a.detach().double().numpy() for a in (y, *(leaf.grad for leaf in leaves))]


def check(actual, expected, dtype):
    for n, (one, other) in enumerate(zip(actual, expected, strict=True)):
        quantity = "glu_gradient" if n else "glu_forward"
        assert relative_error(one, other) <= tolerance(dtype, quantity), n


@over_cases
def test_plain_jax_equals_torch_in_float64(case):
    with jax.enable_x64(True):
        inputs = make_inputs(case, "float64", normal(1))
        actual = pulled(ours(case, "xla"), *inputs)
        assert {a.dtype.name for a in actual} == {"float64"}
        check(actual, torch_glu(case, *inputs), "float64")


@over_backends
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
@over_activations
def test_equals_torch_in_training_dtypes(activation, dtype, backend):
    case = Case(name="odd", M=29, F=67, activation=activation)
    inputs = make_inputs(case, dtype, normal(1))
    actual = pulled(ours(case, backend), *inputs)
    assert {a.dtype.name for a in actual} == {dtype}
    check(actual, torch_glu(case, *inputs), dtype)


@over_backends
@pytest.mark.parametrize("dtype", ["bfloat16", FLOAT16])
@over_activations
def test_forward_casts_where_torch_does_and_gradients_are_no_worse(activation, dtype, backend):
    case = Case(name="odd", M=64, F=128, activation=activation)
    inputs = make_inputs(case, dtype, normal(2))
    actual = pulled(ours(case, backend), *inputs, jit=exact_jit)
    rounded = torch_glu(case, *inputs, dtype=dtype)
    # Left of -1 torch's 1 + tanh cancels. Elsewhere what lies between two values may go to either.
    differing = np.asarray(actual[0], np.float64) != rounded[0]
    assert differing[np.asarray(inputs[0]) > -1].mean() < 0.01
    exact = torch_glu(case, *inputs)
    for one, other, wanted in zip(actual[1:], rounded[1:], exact[1:], strict=True):
        ours_off, torch_off = (
            np.abs(np.asarray(a, np.float64) - wanted).mean() for a in (one, other)
        )
        assert ours_off <= torch_off


@over_backends
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@over_cases
def test_equals_the_definition_in_float64(case, dtype, backend):
    inputs = make_inputs(case, dtype, normal(2))
    actual = pulled(ours(case, backend), *inputs)
    with jax.enable_x64(True):
        exact = (a.astype("float64") for a in (*inputs, cotangent(inputs[0])))
        expected = pulled(partial(glu_ref, case.options), *exact)
    check(actual, expected, dtype)


@over_backends
@over_activations
def test_tails_stay_finite(activation, backend):
    gate = jnp.array([-3e4, -100.0, -20.0, 0.0, 20.0, 100.0, 3e4])
    case = Case(name="tails", M=1, F=7, activation=activation)
    y, d_gate, d_up = pulled(ours(case, backend), gate, jnp.ones(7))
    check((y, d_gate, d_up), torch_glu(case, gate, jnp.ones(7)), "float32")
    assert jnp.isfinite(d_gate).all()
    np.testing.assert_array_equal(y[:2], 0)
