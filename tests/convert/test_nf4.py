"""nf4 in numpy: bitsandbytes' codes and scales, bit for bit; and those of the JAX one."""

import ml_dtypes
import numpy as np
import pytest
import torch

from convert import CheckpointError, dequantize, new_info
from convert.nf4 import TABLE, dynamic_table, quantize_nf4
from pallas_kernels import quantize_nf4 as quantize_in_jax
from pallas_kernels.blockwise_quant.tables import midpoints
from pallas_kernels.nf4 import to_pairs
from tests.pallas_kernels.blockwise_quant.search import searched
from tests.pallas_kernels.nf4.stacks import dequantize_4bit, functional, quantize_4bit
from tests.tolerances import relative_error, tolerance

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def drawn(shape, dtype="float32", scale=0.05):
    return (np.random.default_rng(0).normal(size=shape) * scale).astype(DTYPES[dtype])


def ours(weight, block=64, nested_block=256):
    info = new_info("w", weight.shape, weight.dtype, block=block, nested_block=nested_block)
    return quantize_nf4(info, weight)


def to_torch(weight):
    """numpy has no bfloat16 that torch reads."""
    return torch.tensor(weight.astype(np.float32)).to(getattr(torch, str(weight.dtype)))


def check(weight, block=64):
    """All that bitsandbytes makes of it, and the values that it reads."""
    got = ours(weight, block, nested_block=None)
    codes, state = quantize_4bit(to_torch(weight), blocksize=block, quant_type="nf4")
    np.testing.assert_array_equal(got.codes, codes.numpy().reshape(-1))
    np.testing.assert_array_equal(got.absmax, state.absmax.numpy())
    np.testing.assert_array_equal(got.table, state.code.numpy())
    wanted = dequantize_4bit(codes, state).float().numpy()
    np.testing.assert_array_equal(dequantize(got, weight.dtype).astype(np.float32), wanted)
    return got


def test_tables_are_those_of_bitsandbytes():
    np.testing.assert_array_equal(TABLE, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(dynamic_table(), functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (5, 26), (6, 172), (300, 512)])
def test_equals_bitsandbytes(shape, dtype):
    check(drawn(shape, dtype))


@pytest.mark.parametrize("block", [128, 512])
def test_wide_blocks_equal_bitsandbytes(block):
    check(drawn((64, 172)), block)


def test_zeros_subnormals_and_signs_equal_bitsandbytes():
    weight = drawn((8, 64))
    weight[1] = 0
    weight[2] *= np.float32(1e-37)  # its smallest values are subnormal
    weight[3] *= np.float32(1e-43)  # its absmax is
    weight[4, ::2] = -0.0
    got = check(weight)
    assert got.absmax[1] == 0
    assert 0 < got.absmax[3] < np.finfo(np.float32).tiny


def test_a_tie_goes_to_the_lower_value_as_in_bitsandbytes():
    middles = np.asarray(midpoints(tuple(TABLE.tolist())), np.float32)
    around = np.stack([np.nextafter(middles, -2), middles, np.nextafter(middles, 2)], axis=1)
    row = np.concatenate([[1], around.reshape(-1), np.zeros(18)]).astype(np.float32)
    codes = check(np.stack([row, 4 * row])).codes  # absmax 1 and 4, whose reciprocals are exact
    flat = np.stack([codes >> 4, codes & 15], axis=1).reshape(2, 64)[:, 1:46]
    lower = np.arange(15)
    for got in flat.reshape(2, 15, 3):
        np.testing.assert_array_equal(got, np.stack([lower, lower, lower + 1], axis=1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    weight = drawn((3, 70))
    weight[2, 69] = bad
    with pytest.raises(CheckpointError, match="'w' must be finite to be quantised"):
        ours(weight)


@pytest.mark.parametrize("count", [1, 255, 1500])
def test_scales_are_quantised_as_bitsandbytes_searches(count):
    weight = drawn((count, 64))
    got, absmax = ours(weight), ours(weight, nested_block=None).absmax
    x = np.pad(absmax - got.offset, (0, -count % 256)).reshape(-1, 256)
    np.testing.assert_array_equal(got.nested_absmax, np.abs(x).max(1))
    x = (x * (1 / np.maximum(got.nested_absmax, np.float32(1e-38)))[:, None]).reshape(-1)[:count]
    if count > 1:  # one alone is its own mean: all is 0
        np.testing.assert_array_equal(got.absmax, [searched(v, dynamic_table()) for v in x])
    assert got.offset == np.float32(absmax.astype(np.float64).mean())


def test_a_tied_scale_gets_the_even_code():
    table = dynamic_table()
    around = np.asarray(midpoints(tuple(table.tolist())), np.float32)[[3, 4, 200, 201]]
    # Scales around the mean 2: with -1 and 1 their own mean stays, and 1 is their absmax.
    scales = np.concatenate([[1, -1], around, -around]) + 2
    exact = (scales.astype(np.float32) - 2) == np.concatenate([[1, -1], around, -around])
    got = ours(np.repeat(scales[:, None], 64, 1).astype(np.float32))
    assert got.offset == 2
    tied = got.absmax[exact & (np.arange(10) > 1)]
    assert tied.size
    assert (tied % 2 == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_one_in_jax(dtype):
    weight = drawn((96, 172), dtype)
    got, stack = ours(weight), quantize_in_jax(weight, backend="xla")
    np.testing.assert_array_equal(got.codes, np.asarray(to_pairs(stack.codes[0])))
    offset = np.asarray(stack.nested.offset[0])
    assert relative_error(offset, got.offset) <= tolerance("float32", "absmax_mean")
    np.testing.assert_array_equal(got.nested_table, stack.nested.table)
    np.testing.assert_array_equal(got.absmax, stack.absmax[0])
    scales = np.asarray(stack.nested.absmax[0])
    assert relative_error(scales, got.nested_absmax) <= tolerance("float32", "absmax_mean")
