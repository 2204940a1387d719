"""The norm under jit, scan, vmap and checkpoint; what it keeps and computes; refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from pallas_kernels import Unsupported, add_rms_norm, rms_norm
from pallas_kernels.dispatch import Device, Problem, choose
from pallas_kernels.rms_norm import api, triton
from pallas_kernels.rms_norm.cases import Case, make_inputs
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

CASE = Case(name="small", M=11, D=24)
FORWARD = tolerance("float32", "rms_norm_forward")
GRADIENT = tolerance("float32", "rms_norm_gradient")
over_backends = pytest.mark.parametrize(
    "backend", ["xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu)]
)


@pytest.fixture
def inputs():
    return make_inputs(CASE, "float32", normal(3))


def loss(backend, x, residual, weight):
    y, h = add_rms_norm(x, residual, weight, eps=1e-5, backend=backend)
    return jnp.sin(y).sum() + (h**3).sum()


def gradients(function, argnums=(0, 1, 2)):
    return quick_jit(jax.grad(function, argnums))


@over_backends
def test_vmap_equals_a_loop(inputs, backend):
    x, residual, weight = inputs
    xs, weights = jnp.stack([x, 2 * x]), jnp.stack([weight, weight + 1])
    one = jax.value_and_grad(partial(loss, backend), (0, 1, 2))
    values, batched = quick_jit(jax.vmap(one, (0, None, 0)))(xs, residual, weights)
    for n in range(2):
        value, expected = quick_jit(one)(xs[n], residual, weights[n])
        assert relative_error(values[n], value) <= FORWARD
        for actual, wanted in zip(batched, expected, strict=True):
            assert relative_error(actual[n], wanted) <= GRADIENT


@over_backends
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "checkpoint"])
def test_scan_over_layers_has_the_gradients_of_unrolled_ones(inputs, backend, wrap):
    x, residual, weight = inputs
    weights = jnp.stack([weight, weight * 2, weight - 1])

    def layer(x, weight):
        y, h = add_rms_norm(x, residual, weight, eps=1e-5, backend=backend)
        return h + jnp.sin(y), None

    def scanned(x, weights):
        return (lax.scan(wrap(layer), x, weights)[0] ** 2).sum()

    def unrolled(x, weights):
        for weight in weights:
            h = x + residual
            rstd = lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-5)
            x = h + jnp.sin(h * rstd * weight)
        return (x**2).sum()

    actual = gradients(scanned, (0, 1))(x, weights)
    expected = gradients(unrolled, (0, 1))(x, weights)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= 3 * GRADIENT  # three layers


@over_backends
def test_any_leading_axes(inputs, backend):
    x, residual, weight = inputs
    flat = gradients(partial(loss, backend))(x, residual, weight)
    deep = gradients(partial(loss, backend))(x[:, None, None], residual[:, None, None], weight)
    for one, other in zip(deep, flat, strict=True):
        assert relative_error(one.reshape(other.shape), other) <= GRADIENT
    row = quick_jit(partial(rms_norm, eps=1e-5, backend=backend))(x[0], weight)
    assert row.shape == (CASE.D,)


@over_backends
def test_stream_that_is_not_used_has_no_cotangent(inputs, backend):
    def alone(x, residual, weight):
        y, _ = add_rms_norm(x, residual, weight, eps=1e-5, backend=backend)
        return jnp.sin(y).sum()

    def summed(x, residual, weight):
        return jnp.sin(rms_norm(x + residual, weight, eps=1e-5, backend="xla")).sum()

    for one, other in zip(gradients(alone)(*inputs), gradients(summed)(*inputs), strict=True):
        assert relative_error(one, other) <= GRADIENT


@over_backends
def test_norm_that_is_not_used_hands_the_streams_cotangent_on(inputs, backend):
    def stream(x, residual, weight):
        return (add_rms_norm(x, residual, weight, eps=1e-5, backend=backend)[1] ** 2).sum()

    dx, d_residual, d_weight = gradients(stream)(*inputs)
    expected = 2 * (inputs.x + inputs.residual)
    assert relative_error(dx, expected) <= GRADIENT
    assert relative_error(d_residual, expected) <= GRADIENT
    assert (d_weight == 0).all()


plain = partial(loss, "xla")
# Ways to leave the weight frozen: not differentiated, closed over, or stopped.
FROZEN = {
    "not_differentiated": jax.grad(plain),
    "closed_over": lambda x, r, w: jax.grad(lambda x: plain(x, r, w))(x),
    "stopped": jax.grad(lambda x, r, w: plain(x, r, lax.stop_gradient(w)), (0, 2)),
    "inside_jit": jax.grad(jax.jit(plain)),
    "inside_checkpoint": jax.grad(jax.checkpoint(plain)),
    "inside_scan": jax.grad(
        lambda x, r, w: lax.scan(lambda c, _: (c + plain(x, r, w), None), 0.0, None, length=2)[0]
    ),
}


def weight_gradients(function, inputs):
    """Count the sums over rows, before any dead code is removed."""
    text = str(jax.make_jaxpr(function)(*inputs))
    return text.count("reduce_sum[axes=(0,)")


@pytest.mark.parametrize("way", FROZEN)
def test_frozen_weight_costs_no_gradient(way, inputs):
    assert weight_gradients(FROZEN[way], inputs) == 0


def test_trained_weight_is_summed_once(inputs):
    assert weight_gradients(jax.grad(plain, (0, 2)), inputs) == 1


@over_backends
def test_keeps_one_number_a_row_besides_the_stream_and_the_weight(inputs, backend):
    run = partial(add_rms_norm, eps=1e-5, backend=backend)
    program = jax.make_jaxpr(lambda *a: jax.tree.leaves(jax.vjp(run, *a)[1]))(*inputs).jaxpr
    kept = sorted(variable.aval.shape for variable in program.outvars)
    assert kept == [(CASE.M,), (CASE.M, CASE.D), (CASE.D,)]


def problem(device, dtype="bfloat16", D=4096):
    return Problem(op="rms_norm", device=device, dtype=dtype, sizes={"M": 1, "D": D})


A100 = Device(platform="gpu", compute_capability=(8, 0))
REFUSALS = [
    (Device(platform="cpu"), {}, "it needs an NVIDIA GPU; the device is a cpu"),
    (Device(platform="gpu", compute_capability=(7, 5)), {}, "it needs compute capability 8.0"),
    (A100, {"dtype": "float64"}, "float32, bfloat16 or float16; got float64"),
    (A100, {"D": triton.LONGEST + 1}, "rows must have at most 32768 elements; got 32769"),
]


@pytest.mark.parametrize(("device", "given", "reason"), REFUSALS)
def test_triton_refuses_and_auto_takes_plain_jax(device, given, reason):
    asked = problem(device, **given)
    with pytest.raises(Unsupported, match=reason):
        choose("triton", api.BACKENDS, asked)
    assert choose("auto", api.BACKENDS, asked).name == "xla"


@pytest.mark.parametrize("D", [1, 2049, triton.LONGEST])
def test_triton_serves_an_nvidia_gpu(D):
    assert choose("auto", api.BACKENDS, problem(A100, D=D)).name == "triton"


def test_rejects_an_empty_axis(inputs):
    with pytest.raises(ValueError, match="no axis empty"):
        rms_norm(inputs.x[:0], inputs.weight, eps=1e-5)


def test_rejects_a_residual_that_does_not_fit(inputs):
    x, residual, weight = inputs
    with pytest.raises(ValueError, match=r"got \(10, 24\), wanted \(11, 24\)"):
        add_rms_norm(x, residual[1:], weight, eps=1e-5)
    with pytest.raises(TypeError, match="one dtype; got float32, bfloat16"):
        add_rms_norm(x, residual.astype(jnp.bfloat16), weight, eps=1e-5)


def test_rejects_an_eps_that_is_not_positive(inputs):
    with pytest.raises(ValueError, match="`eps` must be > 0; got 0"):
        rms_norm(inputs.x, inputs.weight, eps=0.0)
