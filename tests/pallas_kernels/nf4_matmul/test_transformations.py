"""4-bit products under jit, vmap, scan and differentiation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels.nf4_matmul import nf4_matmul
from pallas_kernels.nf4_matmul.cases import ODD_STACKS
from tests.pallas_kernels.drawing import normal
from tests.pallas_kernels.nf4.stacks import COMPILED, four_bits
from tests.tolerances import relative_error, tolerance

STACKS = {stack.name: stack for stack in ODD_STACKS}


def drawn(*shape):
    return jnp.asarray(normal(1)(shape), "float32")


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("rows", [1, 7])
def test_vmap_over_x_is_a_product_each(rows, backend):
    stack, values = four_bits(STACKS["odd_half"])
    x = drawn(3, rows, 192)
    run = jax.vmap(partial(nf4_matmul, backend=backend), (0, None, None))
    y = jax.jit(run)(x, stack, jnp.int32(1))
    wanted = np.asarray(x, np.float64) @ values[1].astype(np.float64).T
    assert relative_error(y, wanted) <= tolerance("float32", "nf4_matmul")


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("rows", [2, 5])
def test_scan_over_layers_reads_each(rows, backend):
    stack, values = four_bits(STACKS["odd_half"])

    @jax.jit
    def run(x, stack):
        def layer(x, index):
            y = nf4_matmul(x, stack, index, backend=backend)
            return x.at[:, : y.shape[1]].set(y), y

        return lax.scan(layer, x, jnp.arange(stack.shape[0]))[1]

    x = drawn(rows, 192)
    wanted, state = [], np.asarray(x, np.float64)
    for layer in values.astype(np.float64):
        wanted.append(state @ layer.T)
        state[:, : wanted[-1].shape[1]] = wanted[-1]
    assert relative_error(run(x, stack), wanted) <= tolerance("float32", "nf4_matmul")


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("rows", [3, 6])
def test_gradient_is_that_of_the_dense_product(rows, backend):
    stack, values = four_bits(STACKS["odd_half"])
    x, dy = drawn(rows, 192), drawn(rows, 6) + 1

    def loss(x, stack):
        return jnp.sum(nf4_matmul(x, stack, jnp.int32(2), backend=backend) * dy)

    dx = jax.jit(jax.grad(loss))(x, stack)
    wanted = np.asarray(dy, np.float64) @ values[2].astype(np.float64)
    assert relative_error(dx, wanted) <= tolerance("float32", "nf4_matmul")


def test_the_sum_does_not_depend_on_the_precision_asked_of_jax():
    stack, _ = four_bits(STACKS["many_tiles"])
    x = drawn(8, 2304)
    for precision in ("highest", "bfloat16"):
        with jax.default_matmul_precision(precision):
            text = str(jax.make_jaxpr(partial(nf4_matmul, backend="interpret"))(x, stack, 0))
        dots = [line for line in text.splitlines() if "precision=" in line]
        assert dots
        assert all("HIGHEST" in line for line in dots), dots
