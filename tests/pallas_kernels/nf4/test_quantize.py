"""Codes and absmax against bitsandbytes on the CPU, element for element."""

from functools import partial

import jax
import numpy as np
import pytest
import torch

from pallas_kernels.blockwise_quant.tables import midpoints
from pallas_kernels.nf4 import dequantize_nf4, quantize_nf4
from pallas_kernels.nf4.tables import NF4_TABLE
from tests.pallas_kernels.drawing import FLOAT16
from tests.pallas_kernels.nf4.stacks import (
    COMPILED,
    dequantize_4bit,
    drawn,
    name_of,
    our_codes,
    quantize_4bit,
    to_jax,
)

read = jax.jit(partial(dequantize_nf4, layer=0, backend="xla"), static_argnames="dtype")


def plain(weight, block=64, backend="xla"):
    """The stack of a torch weight with absmax as they are, its arrays in numpy."""
    stack = quantize_nf4(to_jax(weight), block=block, nested=False, backend=backend)
    return jax.tree.map(np.asarray, stack)


def check(weight, block, backend):
    """All that bitsandbytes makes of a torch weight."""
    codes, state = quantize_4bit(weight, blocksize=block, quant_type="nf4")
    ours = plain(weight, block, backend)
    np.testing.assert_array_equal(ours.codes[0], our_codes(codes))
    np.testing.assert_array_equal(ours.absmax[0], state.absmax.numpy())
    values = read(ours, dtype=name_of(weight))
    wanted = dequantize_4bit(codes, state)
    np.testing.assert_array_equal(np.asarray(values, np.float32), wanted.float().numpy())
    return ours


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
def test_equals_bitsandbytes(dtype, backend):
    check(drawn((128, 172), dtype), 64, backend)


@pytest.mark.parametrize("backend", COMPILED)
def test_wide_blocks_equal_bitsandbytes(backend):
    check(drawn((64, 172)), 128, backend)


@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (5, 26), (6, 172)])
def test_odd_sizes_equal_bitsandbytes(shape):
    check(drawn(shape, "bfloat16"), 64, "xla")


@pytest.mark.parametrize("backend", COMPILED)
def test_block_of_zeros_equals_bitsandbytes(backend):
    weight = drawn((4, 64))
    weight[2] = 0
    stack = check(weight, 64, backend)
    assert stack.absmax[0, 2] == 0
    assert (stack.codes[0, :64] & 15 == 7).all()  # +0, not -1 times 0


@pytest.mark.parametrize("backend", COMPILED)
def test_a_tie_goes_to_the_lower_value_as_in_bitsandbytes(backend):
    middles = np.asarray(midpoints(NF4_TABLE), np.float32)
    around = np.stack([np.nextafter(middles, -2), middles, np.nextafter(middles, 2)], axis=1)
    row = np.concatenate([[1], around.reshape(-1), np.zeros(18)]).astype(np.float32)
    weight = np.stack([row, 4 * row])  # absmax 1 and 4, whose reciprocals are exact
    codes = check(torch.tensor(weight), 64, backend).codes[0]
    lower = np.arange(15)
    for flat in (codes >> 4, codes & 15):
        around = flat[1:46].reshape(15, 3)
        np.testing.assert_array_equal(around, np.stack([lower, lower, lower + 1], axis=1))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_absmax_of_a_block_tells_what_is_not_finite(bad, backend):
    weight = drawn((4, 64))
    right = plain(weight, backend=backend).absmax[0]
    weight[1, 17] = bad
    absmax = plain(weight, backend=backend).absmax[0]
    np.testing.assert_array_equal(np.isfinite(absmax), [True, False, True, True])
    np.testing.assert_array_equal(absmax[[0, 2, 3]], right[[0, 2, 3]])
    nested = quantize_nf4(to_jax(weight), backend=backend).nested
    assert not np.isfinite(nested.offset).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
@pytest.mark.parametrize("shape", [(128, 172), (32, 64)])
def test_kernel_and_plain_jax_are_equal_bit_for_bit(shape, dtype):
    weight = drawn(shape, dtype, seed=5)
    kernel, xla = (plain(weight, backend=backend) for backend in ("interpret", "xla"))
    np.testing.assert_array_equal(kernel.codes, xla.codes)
    np.testing.assert_array_equal(kernel.absmax, xla.absmax)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_result_is_a_stack_of_one_in_the_weights_dtype(dtype):
    stack = quantize_nf4(to_jax(drawn((5, 26), dtype)))
    assert (stack.shape, stack.dtype, stack.block) == ((1, 5, 26), dtype, 64)
    assert stack.nbytes == 65 + 3 + 4 * (16 + 1 + 256 + 1)  # codes, absmax, tables and nested
