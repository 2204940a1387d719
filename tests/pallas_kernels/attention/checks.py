"""A backend's output and gradients beside those of torch in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention import api
from pallas_kernels.attention.cases import make_inputs
from tests.pallas_kernels.attention.oracle import torch_attention
from tests.pallas_kernels.compiled import quick_jit
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance


def with_gradients(function, inputs, dy):
    """Give y, dq, dk, dv of `function(inputs)`."""

    @quick_jit
    def run(q, k, v, dy):
        y, pull = jax.vjp(lambda q, k, v: function(inputs._replace(q=q, k=k, v=v)), q, k, v)
        return y, *pull(dy)

    return run(inputs.q, inputs.k, inputs.v, dy)


def draw(case, dtype):
    inputs = make_inputs(case, dtype, normal(1))
    return inputs, jnp.asarray(normal(2)(inputs.q.shape), dtype)


def check(case, dtype, backend, **arrays):
    """Compare; `arrays` replace some of the case's inputs."""
    inputs, dy = draw(case, dtype)
    inputs = inputs._replace(**arrays)
    ours = with_gradients(partial(api.differentiable, backend, case.options), inputs, dy)
    assert all(x.dtype == dtype for x in ours)
    expected = torch_attention(case, inputs, dy)
    assert relative_error(ours[0], expected[0]) <= tolerance(dtype, "attention_forward")
    check_gradients(ours[1:], expected[1:], dtype)


def check_gradients(actual, expected, dtype):
    # One scale for the three: where a row sees one key, dq and dk are nothing but rounding.
    scale = max(np.abs(wanted).max() for wanted in expected)
    for name, gradient, wanted in zip("qkv", actual, expected, strict=True):
        error = relative_error(gradient, wanted, scale)
        assert error <= tolerance(dtype, "attention_gradient"), name
