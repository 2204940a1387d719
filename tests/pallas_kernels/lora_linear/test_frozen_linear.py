"""x W^T with a W of 4 bits: value and gradient, layer by layer, of a whole stack and of a bank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import NF4, frozen_linear, quantize_nf4
from pallas_kernels.nf4 import Bank, Stack, is_stack, layer_matrix
from pallas_kernels.nf4.reference import dequantize_nf4_ref
from tests.tolerances import relative_error, tolerance

OUT, IN = 10, 24  # 240 elements: three blocks and a part of one


def stack_of(layers: int, seed: int) -> NF4:
    weights = np.random.default_rng(seed).normal(size=(layers, OUT, IN)).astype(np.float32)
    return jax.tree.map(
        lambda *parts: jnp.concatenate(parts) if parts[0].shape[0] == 1 else parts[0],
        *[quantize_nf4(jnp.asarray(weight)) for weight in weights],
    )


@functools.cache
def stacks() -> dict[str, Stack]:
    dense = np.random.default_rng(2).normal(size=(2, OUT, IN)).astype(np.float32)
    kinds, slots = (True, False, False, True, True), (0, 1, 0, 2, 1)
    bank = Bank(dense=jnp.asarray(dense), quantized=stack_of(3, 1), kinds=kinds, slots=slots)
    return {"nf4": stack_of(5, 0), "bank": bank}


def expected_matrix(stack: Stack, layer: int) -> np.ndarray:
    if isinstance(stack, NF4):
        return np.asarray(dequantize_nf4_ref(stack, layer, jnp.float32))
    slot = stack.slots[layer]
    if not stack.kinds[layer]:
        return np.asarray(stack.dense[slot])
    return np.asarray(dequantize_nf4_ref(stack.quantized, slot, jnp.float32))


@jax.jit
def value_and_slope(x: jax.Array, stack: Stack, layer: jax.Array, dy: jax.Array):
    y, back = jax.vjp(lambda x: frozen_linear(x, stack, layer=layer), x)
    return y, back(dy)[0]


@pytest.mark.parametrize("kind", ["nf4", "bank"])
def test_value_and_gradient_are_those_of_the_layers_own_matrix(kind: str) -> None:
    stack, draw = stacks()[kind], np.random.default_rng(3)
    assert is_stack(stack)
    assert stack.shape == (5, OUT, IN)
    x, dy = (draw.normal(size=(2, 3, size)).astype(np.float32) for size in (IN, OUT))
    for layer in range(5):
        matrix = expected_matrix(stack, layer)
        np.testing.assert_array_equal(layer_matrix(stack, layer, jnp.float32, "auto"), matrix)
        y, dx = value_and_slope(x, stack, jnp.int32(layer), dy)
        wide = matrix.astype(np.float64)
        assert relative_error(y, x @ wide.T) <= tolerance("float32", "frozen_product")
        assert relative_error(dx, dy @ wide) <= tolerance("float32", "frozen_product")


@pytest.mark.parametrize("kind", ["nf4", "bank"])
def test_it_computes_in_the_dtype_of_its_input(kind: str) -> None:
    x = jnp.ones((1, 2, IN), jnp.bfloat16)
    y, dx = value_and_slope(x, stacks()[kind], jnp.int32(1), jnp.ones((1, 2, OUT), jnp.bfloat16))
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_a_dense_weight_has_no_gradient() -> None:
    weight, x = jnp.ones((OUT, IN)), jnp.ones((2, IN))
    dx, dw = jax.grad(lambda x, w: frozen_linear(x, w).sum(), argnums=(0, 1))(x, weight)
    np.testing.assert_array_equal(dx, np.full((2, IN), OUT))
    np.testing.assert_array_equal(dw, np.zeros((OUT, IN)))


def test_a_dense_array_is_no_stack() -> None:
    assert not is_stack(jnp.zeros((5, OUT, IN)))
