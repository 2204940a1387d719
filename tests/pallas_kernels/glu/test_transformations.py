"""The gated activation under jit, scan, vmap and checkpoint; what it keeps; refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from pallas_kernels import Unsupported, glu
from pallas_kernels.dispatch import Device, Problem, choose
from pallas_kernels.glu import api
from pallas_kernels.glu.cases import Case, make_inputs
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

CASE = Case(name="small", M=11, F=24, activation="gelu_tanh")
GRADIENT = tolerance("float32", "glu_gradient")
over_backends = pytest.mark.parametrize(
    "backend", ["xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu)]
)


@pytest.fixture
def inputs():
    return make_inputs(CASE, "float32", normal(3))


def run(backend, gate, up):
    return glu(gate, up, activation=CASE.activation, backend=backend)


def gradients(function):
    return quick_jit(jax.grad(lambda *a: jnp.sin(function(*a)).sum(), (0, 1)))


@over_backends
def test_vmap_equals_a_loop(inputs, backend):
    gate, up = inputs
    gates = jnp.stack([gate, gate + 1])
    batched = gradients(jax.vmap(partial(run, backend), (0, None)))(gates, up)
    parts = [gradients(partial(run, "xla"))(gate, up) for gate in gates]
    assert relative_error(batched[0], jnp.stack([part[0] for part in parts])) <= GRADIENT
    assert relative_error(batched[1], parts[0][1] + parts[1][1]) <= GRADIENT


@over_backends
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "checkpoint"])
def test_scan_has_the_gradients_of_a_loop(inputs, backend, wrap):
    gate, up = inputs

    def scanned(gate, up):
        step = wrap(lambda x, _: (x + run(backend, x, up), None))
        return lax.scan(step, gate, None, length=3)[0]

    def looped(gate, up):
        for _ in range(3):
            gate = gate + run("xla", gate, up)
        return gate

    actual, expected = gradients(scanned)(gate, up), gradients(looped)(gate, up)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= 3 * GRADIENT  # three layers


@over_backends
@pytest.mark.parametrize("shape", [(264,), (11, 3, 8), (2, 3, 4, 11)])
def test_any_shape(inputs, backend, shape):
    reshaped = gradients(partial(run, backend))(*(a.reshape(shape) for a in inputs))
    for one, other in zip(reshaped, gradients(partial(run, "xla"))(*inputs), strict=True):
        assert one.shape == shape
        assert relative_error(one.reshape(other.shape), other) <= GRADIENT


@over_backends
def test_keeps_its_inputs_and_nothing_else(inputs, backend):
    def kept(gate, up):
        return jax.tree.leaves(jax.vjp(partial(run, backend), gate, up)[1])

    program = jax.make_jaxpr(kept)(*inputs).jaxpr
    assert set(program.outvars) <= set(program.invars)


def problem(device, dtype="bfloat16"):
    return Problem(op="glu", device=device, dtype=dtype, sizes={"N": 7})


A100 = Device(platform="gpu", compute_capability=(8, 0))
REFUSALS = [
    (Device(platform="cpu"), "bfloat16", "it needs an NVIDIA GPU; the device is a cpu"),
    (Device(platform="gpu", compute_capability=(7, 5)), "bfloat16", "it needs compute capability"),
    (A100, "float64", "float32, bfloat16 or float16; got float64"),
]


@pytest.mark.parametrize(("device", "dtype", "reason"), REFUSALS)
def test_triton_refuses_and_auto_takes_plain_jax(device, dtype, reason):
    asked = problem(device, dtype)
    with pytest.raises(Unsupported, match=reason):
        choose("triton", api.BACKENDS, asked)
    assert choose("auto", api.BACKENDS, asked).name == "xla"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_triton_serves_an_nvidia_gpu_that_asks_for_it(dtype):
    assert choose("triton", api.BACKENDS, problem(A100, dtype)).name == "triton"
    assert choose("auto", api.BACKENDS, problem(A100, dtype)).name == "xla"


def test_rejects_shapes_and_dtypes_that_differ(inputs):
    gate, up = inputs
    with pytest.raises(ValueError, match=r"one shape, no axis empty; got \(11, 24\), \(10, 24\)"):
        glu(gate, up[1:])
    with pytest.raises(ValueError, match="no axis empty"):
        glu(gate[:0], up[:0])
    with pytest.raises(TypeError, match="one dtype; got float32, bfloat16"):
        glu(gate, up.astype(jnp.bfloat16))


def test_rejects_another_activation(inputs):
    with pytest.raises(ValueError, match="must be one of silu, gelu_tanh; got 'relu'"):
        glu(*inputs, activation="relu")
