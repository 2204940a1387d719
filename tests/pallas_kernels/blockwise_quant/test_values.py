"""8-bit blocks: the search of bitsandbytes' CUDA kernels, and its CPU library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pallas_kernels import Unsupported
from pallas_kernels.blockwise_quant import Blockwise, dequantize_blockwise, quantize_blockwise
from pallas_kernels.blockwise_quant.cases import ODD_CASES
from pallas_kernels.blockwise_quant.contract import zeros
from pallas_kernels.blockwise_quant.reference import (
    dequantize_blockwise_ref,
    quantize_blockwise_ref,
)
from pallas_kernels.blockwise_quant.search import nearest
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLES, MIDDLES
from tests.pallas_kernels.blockwise_quant.search import searched
from tests.pallas_kernels.drawing import FLOAT16, normal

functional = pytest.importorskip("bitsandbytes").functional
BACKENDS = ("xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu))
TYPES = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def drawn(case, dtype="float32"):
    x = normal(case.N)((case.L, case.N)) * 0.01
    return jnp.asarray(x if case.signed else x * x, dtype)


def table_of(signed):
    return np.asarray(DYNAMIC_TABLES[signed], np.float32)


def rows_of(blocks, size):
    return np.asarray(blocks.codes).reshape(blocks.codes.shape[0], -1)[:, :size]


@TYPES
def test_table_is_that_of_bitsandbytes(signed):
    theirs = functional.create_dynamic_map(signed=signed).numpy()
    np.testing.assert_array_equal(table_of(signed), theirs)


@TYPES
def test_every_value_and_middle_goes_where_the_cuda_kernel_sends_it(signed):
    table = table_of(signed)
    middles = np.asarray(MIDDLES[signed], np.float32)
    points = np.concatenate([table, middles, [-1, -0.0, 0, 1][not signed :]]).astype(np.float32)
    points = np.concatenate([points, np.nextafter(points, -2), np.nextafter(points, 2)])
    points = points[points >= -1] if signed else points[points >= 0]
    middle = jnp.asarray(middles)
    codes = jax.jit(lambda x: nearest(x, lambda i: middle[i], signed=signed))(points)
    np.testing.assert_array_equal(codes, [searched(point, table) for point in points])


@TYPES
def test_search_is_exact_all_over_the_range(signed):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 1, 200000), 10 ** rng.uniform(-9, 0, 800000)])
    x = (x * rng.choice([-1, 1], x.size) if signed else x).astype(np.float32)
    middles = np.asarray(MIDDLES[signed], np.float32)
    x = x[~np.isin(x, middles)]
    middle = jnp.asarray(middles)
    codes = jax.jit(lambda x: nearest(x, lambda i: middle[i], signed=signed))(x)
    np.testing.assert_array_equal(codes, np.searchsorted(middles, x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_quantisation_equals_the_search_of_the_cuda_kernel(case, backend):
    x = np.asarray(drawn(case))
    blocks = jax.jit(lambda x: quantize_blockwise(x, signed=case.signed, backend=backend))(x)
    wide = np.pad(x, ((0, 0), (0, -case.N % 256))).reshape(case.L, -1, 256)
    np.testing.assert_array_equal(blocks.absmax, np.abs(wide).max(2))
    scaled = wide * (1 / np.abs(wide).max(2))[..., None]
    assert scaled.dtype == np.float32
    wanted = [searched(value, table_of(case.signed)) for value in scaled.reshape(-1)]
    np.testing.assert_array_equal(blocks.codes.reshape(-1), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_values_equal_bitsandbytes_bit_for_bit(case, dtype, backend):
    blocks = quantize_blockwise(drawn(case), signed=case.signed)
    values = dequantize_blockwise(blocks, case.N, dtype, backend=backend)
    assert (values.shape, values.dtype) == ((case.L, case.N), dtype)
    for row in range(case.L):
        theirs = functional.dequantize_blockwise(
            torch.tensor(rows_of(blocks, case.N)[row]),
            absmax=torch.tensor(np.asarray(blocks.absmax[row])),
            code=torch.tensor(table_of(case.signed)),
            blocksize=256,
        )
        wanted = theirs.to(getattr(torch, dtype)).float()
        np.testing.assert_array_equal(np.asarray(values[row], np.float32), wanted)


# Its CPU library reads the code of x from a table of 2^16 cells of [-1, 1], and so misses the
# nearest where a middle lies inside a cell: 193 of 131,072 signed codes, and 4,021 of as many
# unsigned ones, more of which are small. Where a cell holds several codes it is off by up to 7.
@pytest.mark.parametrize(("signed", "share"), [(True, 0.003), (False, 0.05)])
def test_cpu_library_has_seldom_another_code_and_never_a_nearer_one(signed, share):
    x = normal(0)((1, 131072)).astype(np.float32)
    x = x if signed else x * x
    blocks = quantize_blockwise(jnp.asarray(x), signed=signed)
    table = table_of(signed)
    theirs, state = functional.quantize_blockwise(
        torch.tensor(x[0]), code=torch.tensor(table), blocksize=256
    )
    np.testing.assert_array_equal(blocks.absmax[0], state.absmax)
    ours, theirs = rows_of(blocks, x.size)[0], theirs.numpy()
    assert 0 < (ours != theirs).mean() < share
    scaled = x[0] / np.repeat(state.absmax.numpy(), 256)
    farther = np.abs(table[theirs] - scaled) - np.abs(table[ours] - scaled)
    assert farther.min() > -1e-7
    assert farther.max() < 2**-15


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", FLOAT16])
@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_kernel_and_plain_jax_and_definition_are_equal_bit_for_bit(case, dtype):
    x = drawn(case, dtype)
    wanted = quantize_blockwise_ref(x, signed=case.signed)
    for backend in ("xla", "interpret"):
        blocks = quantize_blockwise(x, signed=case.signed, backend=backend)
        np.testing.assert_array_equal(blocks.codes, wanted.codes)
        np.testing.assert_array_equal(blocks.absmax, wanted.absmax)
        values = dequantize_blockwise(blocks, case.N, backend=backend)
        np.testing.assert_array_equal(values, dequantize_blockwise_ref(wanted, case.N))


@pytest.mark.parametrize("backend", BACKENDS)
@TYPES
def test_zeros_stay_zeros(signed, backend):
    x = jnp.zeros((2, 300))
    blocks = quantize_blockwise(x, signed=signed, backend=backend)
    start = zeros(2, 300, signed=signed)
    np.testing.assert_array_equal(blocks.codes, start.codes)
    np.testing.assert_array_equal(blocks.absmax, start.absmax)
    np.testing.assert_array_equal(dequantize_blockwise(blocks, 300, backend=backend), x)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_absmax_of_a_block_tells_what_is_not_finite(bad, backend):
    x = jnp.asarray(normal(1)((2, 600)), jnp.float32)
    right = quantize_blockwise(x, backend=backend)
    wrong = quantize_blockwise(x.at[1, 300].set(bad), backend=backend)
    np.testing.assert_array_equal(np.isfinite(wrong.absmax), [[1, 1, 1], [1, 0, 1]])
    for block in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2)):
        np.testing.assert_array_equal(wrong.codes[block], right.codes[block])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_value_is_kept_from_zero_on_request(backend):
    x = jnp.asarray([[1, -1e-8, 1e-8, -2e-7, -3e-7, 0, -0.5]], jnp.float32)
    plain = quantize_blockwise(x, backend=backend).codes[0, 0, :7]
    kept = quantize_blockwise(x, keeps_sign=True, backend=backend).codes[0, 0, :7]
    np.testing.assert_array_equal(plain[:-1], [255, 127, 127, 127, 126, 127])
    np.testing.assert_array_equal(kept[:-1], [255, 126, 127, 126, 126, 127])
    assert plain[-1] == kept[-1]
    with pytest.raises(ValueError, match="got signed=False"):
        quantize_blockwise(x, signed=False, keeps_sign=True, backend=backend)


def test_blocks_take_a_byte_and_a_64th():
    blocks = quantize_blockwise(jnp.ones((3, 2560)))
    assert blocks.nbytes == 3 * 2560 * (1 + 4 / 256)


def test_rejects_blocks_that_do_not_fit():
    blocks = zeros(2, 300, signed=True)
    with pytest.raises(ValueError, match=r"`blocks.codes` of 2 rows of 600 values must have shape"):
        dequantize_blockwise(blocks, 600)
    short = Blockwise(codes=blocks.codes, absmax=blocks.absmax[:, :1], signed=True)
    with pytest.raises(ValueError, match=r"`blocks.absmax` .* \(2, 2\); got \(2, 1\)"):
        dequantize_blockwise(short, 300)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="the device serves it")
def test_forced_triton_says_what_the_device_lacks():
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        quantize_blockwise(jnp.zeros((1, 2)), backend="triton")
    with pytest.raises(Unsupported, match="triton: it needs an NVIDIA GPU; the device is a cpu"):
        dequantize_blockwise(zeros(1, 2, signed=True), 2, backend="triton")
