"""Rows of a matrix in host memory are those of the same matrix on the device, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.layers.host_memory import DEVICE, HOST, in_host_memory, on_device, rows_of

MATRIX = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
INDEX = np.array([[0, 6, 3], [2, 2, 9]], np.int32)  # the last is clipped


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_those_of_the_device(dtype):
    on_the_device = jnp.asarray(MATRIX, dtype)
    on_the_host = jax.device_put(on_the_device, HOST)
    assert in_host_memory(on_the_host)
    for lookup in (rows_of, jax.jit(rows_of)):
        found = lookup(on_the_host, jnp.asarray(INDEX))
        assert not in_host_memory(found)
        np.testing.assert_array_equal(found, rows_of(on_the_device, jnp.asarray(INDEX)))
        np.testing.assert_array_equal(found, np.asarray(on_the_device)[np.minimum(INDEX, 6)])


def test_inside_a_scan_and_beside_a_gradient():
    """As in a step of several micro-batches: the matrix is not trained, what follows is."""
    host = jax.device_put(jnp.asarray(MATRIX), HOST)

    def loss(scale, matrix):
        def add(total, index):
            return total + jnp.sum(jnp.sin(scale * rows_of(matrix, index[None]))), None

        return jax.lax.scan(add, jnp.float32(0), jnp.asarray(INDEX))[0]

    value = jax.jit(jax.value_and_grad(loss))
    for found, expected in zip(value(2.0, host), value(2.0, jnp.asarray(MATRIX)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_only_what_is_in_host_memory_is_copied():
    here, there = jnp.ones(2), jax.device_put(jnp.zeros(2), HOST)
    found = on_device({"here": here, "there": there})
    assert found["here"] is here
    assert found["there"].sharding.memory_kind == jax.device_put(here, DEVICE).sharding.memory_kind


def test_lowered_for_cuda_the_matrix_stays_where_it_is():
    """The gather is marked for the host; index and rows, and not the matrix, to be moved."""
    host = jax.device_put(jnp.asarray(MATRIX), HOST)
    text = jax.jit(rows_of).trace(host, INDEX).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count('"stablehlo.gather"') == 1
    assert '_xla_compute_type = "host"' in text
    moved = [line for line in text.splitlines() if "annotate_device_placement" in line]
    assert any("tensor<2x3xi32>" in line and "pinned_host" in line for line in moved)
    assert any("tensor<2x3x3xf32>" in line and '"device"' in line for line in moved)
    assert "7x3" not in "".join(moved)
