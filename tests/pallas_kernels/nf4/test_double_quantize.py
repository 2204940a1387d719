"""The 8-bit codes of absmax: the search of bitsandbytes' CUDA kernel, and its CPU kernel."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLE
from pallas_kernels.nf4 import dequantize_nf4, double_quantize, quantize_nf4
from tests.pallas_kernels.blockwise_quant.search import searched
from tests.pallas_kernels.nf4.stacks import (
    COMPILED,
    dequantize_4bit,
    drawn,
    functional,
    our_codes,
    quantize_4bit,
    to_jax,
)
from tests.tolerances import relative_error, tolerance

TABLE = np.asarray(DYNAMIC_TABLE, np.float32)
read = jax.jit(partial(dequantize_nf4, layer=0, dtype="float32", backend="xla"))


def absmax_of(count, seed=0):
    """What the blocks of a random weight have."""
    return np.abs(np.random.default_rng(seed).normal(size=(count, 64))).max(1).astype(np.float32)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("count", [1, 256, 1500])
def test_equals_the_search_of_the_cuda_kernel(count, backend):
    absmax = absmax_of(count)
    codes, scales, offset = map(np.asarray, double_quantize(absmax, backend=backend))
    x = np.pad(absmax - offset, (0, -count % 256)).reshape(-1, 256)
    np.testing.assert_array_equal(scales, np.abs(x).max(1))
    x = (x * (1 / np.maximum(scales, np.float32(1e-38)))[:, None]).reshape(-1)[:count]
    assert x.dtype == np.float32
    if count > 1:  # one alone is its own mean: all is 0
        np.testing.assert_array_equal(codes, [searched(value, TABLE) for value in x])
    wanted = absmax.astype(np.float64).mean()
    assert relative_error(offset, wanted) <= tolerance("float32", "absmax_mean")


def test_cpu_kernel_seldom_has_another_code_and_never_a_nearer_one():
    # That kernel reads the code of x from a table of cells 2^-15 wide, and so misses the nearest
    # one where a middle lies inside the cell: here 127 of 65,536 codes, 0.19 %. Around zero a cell
    # holds several codes.
    absmax = absmax_of(65536)
    codes, scales, offset = map(np.asarray, double_quantize(absmax))
    theirs, state = functional.quantize_blockwise(torch.tensor(absmax - offset), blocksize=256)
    np.testing.assert_array_equal(scales, state.absmax.numpy())
    theirs = theirs.numpy()
    x = (absmax - offset) / np.repeat(scales, 256)
    apart = np.abs(codes.astype(int) - theirs.astype(int))
    assert (apart != 0).mean() < 0.003
    assert apart[np.abs(x) > 2**-15].max() == 1
    farther = np.abs(TABLE[theirs] - x) - np.abs(TABLE[codes] - x)
    assert farther.min() > -1e-7
    assert farther.max() < 2**-15


def test_nested_weight_is_bitsandbytes_but_for_those_codes():
    weight = drawn((256, 172))
    codes, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    ours = quantize_nf4(to_jax(weight), nested=True, backend="xla")
    np.testing.assert_array_equal(np.asarray(ours.codes)[0], our_codes(codes))
    np.testing.assert_array_equal(ours.nested.table, state.state2.code.numpy())
    assert ours.nested.block == state.state2.blocksize
    apart = np.abs(np.asarray(ours.absmax, int)[0] - state.absmax.numpy().astype(int))
    assert (apart != 0).mean() < 0.01  # 2 of 688
    same = np.repeat(apart == 0, 64)
    values = np.asarray(read(ours)).reshape(-1)
    wanted = dequantize_4bit(codes, state).numpy().reshape(-1)
    assert relative_error(values[same], wanted[same]) <= tolerance("float32", "absmax_mean")


def test_equal_absmax_are_read_back_exactly():
    weight = jnp.asarray(np.tile([0.75, 0, -0.75, 0], (4, 32)), jnp.float32)
    stack = quantize_nf4(weight)
    assert (stack.nested.offset == 0.75).all()
    np.testing.assert_array_equal(read(stack), weight)
