"""Products with 4-bit weights against bitsandbytes' values of them, summed in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels.nf4 import dequantize_nf4
from pallas_kernels.nf4_matmul import nf4_matmul
from pallas_kernels.nf4_matmul.cases import ODD_CASES, ODD_STACKS
from pallas_kernels.nf4_matmul.reference import nf4_matmul_ref
from tests.pallas_kernels.drawing import FLOAT16, normal
from tests.pallas_kernels.nf4.stacks import COMPILED, four_bits
from tests.tolerances import relative_error, tolerance

STACKS = {stack.name: stack for stack in ODD_STACKS}
DTYPES = ("float32", "bfloat16", FLOAT16)


def drawn_x(case, dtype):
    return jnp.asarray(normal(1)((case.M, case.stack.I)), dtype)


def product(x, values):
    """In float64, of x as it is rounded."""
    return np.asarray(x, np.float64) @ np.asarray(values, np.float64).T


def read(backend, x, stack):
    """The products with all layers, by one program that is told the layer."""
    run = jax.jit(partial(nf4_matmul, backend=backend))
    ys = [run(x, stack, jnp.int32(layer)) for layer in range(stack.shape[0])]
    assert run._cache_size() == 1
    assert {y.dtype for y in ys} == {x.dtype}
    return ys


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_equals_the_product_with_bitsandbytes_values(case, dtype, backend):
    stack, values = four_bits(case.stack, dtype)
    x = drawn_x(case, dtype)
    for y, layer in zip(read(backend, x, stack), values, strict=True):
        assert relative_error(y, product(x, layer)) <= tolerance(dtype, "nf4_matmul")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ODD_CASES[2::4], ids=lambda case: case.name)
def test_the_definition_equals_it_too(case, dtype):
    stack, values = four_bits(case.stack, dtype)
    x = drawn_x(case, dtype)
    y = nf4_matmul_ref(x, stack, stack.shape[0] - 1)
    assert y.dtype == x.dtype
    assert relative_error(y, product(x, values[-1])) <= tolerance(dtype, "nf4_matmul")


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 4, 32])
def test_a_row_with_a_single_one_reads_bit_equal_weights(rows, dtype, stored, backend):
    stack, values = four_bits(STACKS["odd_half"], stored)
    wanted = torch.tensor(values[1]).to(getattr(torch, dtype)).float().numpy()
    dense = np.asarray(dequantize_nf4(stack, 1, dtype), np.float32)
    np.testing.assert_array_equal(dense, wanted)
    run = jax.jit(partial(nf4_matmul, backend=backend))
    for first in (0, 64, stack.matrix[1] - rows):
        x = jnp.eye(rows, stack.matrix[1], first, dtype)
        y = np.asarray(run(x, stack, 1), np.float32)
        np.testing.assert_array_equal(y, wanted.T[first : first + rows])


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("rows", [1, 8])
def test_reads_the_table_of_fp4(rows, backend):
    case = replace(ODD_CASES[2], M=rows)
    stack, values = four_bits(case.stack, "bfloat16", "fp4")
    x = drawn_x(case, "bfloat16")
    for y, layer in zip(read(backend, x, stack), values, strict=True):
        assert relative_error(y, product(x, layer)) <= tolerance("bfloat16", "nf4_matmul")


@pytest.mark.parametrize("rows", [0, 33])
def test_other_numbers_of_rows_dequantise(rows):
    case = replace(ODD_CASES[2], M=rows)
    stack, values = four_bits(case.stack)
    y = nf4_matmul(drawn_x(case, "float32"), stack, 2)
    wanted = product(drawn_x(case, "float32"), values[2])
    assert y.shape == wanted.shape
    if rows:
        assert relative_error(y, wanted) <= tolerance("float32", "nf4_matmul")


@pytest.mark.parametrize("leading", [(), (1,), (3, 1), (2, 2, 2)])
def test_leading_axes_are_rows(leading):
    stack, values = four_bits(STACKS["one_block"])
    x = jnp.asarray(normal(2)((*leading, 64)), "float32")
    y = nf4_matmul(x, stack, 0, backend="interpret")
    assert relative_error(y, product(x, values[0])) <= tolerance("float32", "nf4_matmul")
