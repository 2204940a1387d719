import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from convert.rounding import cast, merge_linear

BF16, F16, F32 = (np.dtype(kind) for kind in (ml_dtypes.bfloat16, np.float16, np.float32))
# Significant bits, exponent of the smallest normal number, largest finite number.
FORMATS = {
    BF16: (8, -126, (2 - 2.0**-7) * 2.0**127),
    F16: (11, -14, 65504.0),
    F32: (24, -126, (2 - 2.0**-23) * 2.0**127),
}
DTYPES = pytest.mark.parametrize("dtype", FORMATS, ids=str)


def rounded(exact, dtype):
    """Float64 rounded to nearest, ties to even, in integers alone: the oracle."""
    bits, lowest, largest = FORMATS[dtype]
    finite = np.where(np.isfinite(exact), exact, 2.0**1000)
    fraction, exponent = np.frexp(finite)
    whole = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
    # Keep `bits` of the 53, fewer below the smallest normal number.
    drop = 53 - bits + np.maximum(lowest + 1 - exponent.astype(np.int64), 0)
    drop = np.minimum(drop, 62)
    kept, rest, half = whole >> drop, whole & ((1 << drop) - 1), 1 << (drop - 1)
    kept += (rest > half) | ((rest == half) & (kept % 2 == 1))
    value = np.ldexp(kept.astype(np.float64), exponent - 53 + drop)
    return np.copysign(np.where(value > largest, np.inf, value), exact)


def assert_rounded(got, exact):
    assert got.shape == exact.shape
    wanted = rounded(exact, got.dtype)
    np.testing.assert_array_equal(got.astype(np.float64), wanted)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))


def hard_values(dtype, count=20_000):
    """Random numbers of every size, and those at, just above and just below the middles."""
    bits, lowest, largest = FORMATS[dtype]
    rng = np.random.default_rng(0)
    exponents = rng.integers(lowest - bits - 2, int(np.log2(largest)) + 2, count)
    some = rng.standard_normal(count) * 2.0**exponents
    on = rounded(some, dtype)
    on = on[np.isfinite(on) & (on != 0)]
    unit = 2.0 ** (np.maximum(np.frexp(on)[1] - 1, lowest) - bits + 1)
    near = [on + unit / 2 * (1 + side * 2.0**-k) for k in (20, 30, 40) for side in (-1, 0, 1)]
    return np.concatenate([some, on, *near, [0.0, -0.0, np.inf, -np.inf, largest, 1e300, -1e300]])


def test_the_oracle_agrees_with_numpy_where_numpy_rounds_once():
    for dtype in (F16, F32):
        with np.errstate(over="ignore"):
            wanted = hard_values(dtype).astype(dtype)
        np.testing.assert_array_equal(rounded(hard_values(dtype), dtype), wanted)


@DTYPES
def test_float64_is_rounded_once(dtype):
    assert_rounded(cast(hard_values(dtype), dtype), hard_values(dtype))


def test_the_hard_values_are_those_that_a_plain_cast_gets_wrong():
    values = hard_values(BF16)
    with np.errstate(over="ignore"):
        plain = values.astype(BF16).astype(np.float64)
    assert (plain != rounded(values, BF16)).sum() > 1000


@DTYPES
def test_nan_stays_nan(dtype):
    values = np.array([np.nan, 1.0])
    assert np.isnan(cast(values, dtype)).tolist() == [True, False]


@DTYPES
@pytest.mark.parametrize("source", FORMATS, ids=str)
def test_cast_of_a_weight_is_rounded_once(source, dtype):
    values = cast(hard_values(source), source)
    assert_rounded(cast(values, dtype), values.astype(np.float64))


def test_cast_to_its_own_dtype_is_no_copy():
    array = np.ones(3, BF16)
    assert cast(array, BF16) is array


def factors(rows, columns, rank, source=BF16):
    rng = np.random.default_rng(rows * columns + rank)
    weight = rng.standard_normal((rows, columns)).astype(source)
    a = rng.standard_normal((rank, columns)).astype(np.float32)
    return weight, a, rng.standard_normal((rows, rank)).astype(np.float32)


@DTYPES
@pytest.mark.parametrize("source", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 13, 3), (129, 257, 5)], ids=str)
def test_merge_is_the_float64_sum_rounded_once(shape, source, dtype):
    weight, a, b = factors(*shape, source)
    exact = weight.astype(np.float64) + 0.7 * (b.astype(np.float64) @ a.astype(np.float64))
    got = merge_linear(weight, a, b, 0.7, dtype)
    assert got.dtype == dtype
    assert_rounded(got, exact)


def test_merge_rounds_once_beside_the_middles_of_bfloat16():
    weight = np.random.default_rng(0).standard_normal((61, 67)).astype(BF16)
    half = 2.0 ** (np.frexp(weight.astype(np.float64))[1] - 9)
    sides = np.where(np.arange(67) % 2 == 0, 1 + 2.0**-22, 1 - 2.0**-22)
    exact = weight.astype(np.float64) + half * sides
    b, a = np.eye(61, dtype=np.float32), (half * sides).astype(np.float32)
    got = merge_linear(weight, a, b, 1.0, BF16)
    assert_rounded(got, exact)
    assert (exact.astype(np.float32).astype(BF16) != got).mean() > 0.2


@pytest.mark.parametrize("rows_of_a_block", [1, 3, 200])
def test_merge_in_blocks_of_rows_is_the_merge(monkeypatch, rows_of_a_block):
    weight, a, b = factors(61, 17, 4)
    whole = merge_linear(weight, a, b, 1.5, F32)
    monkeypatch.setattr("convert.rounding._BLOCK_BYTES", 8 * 17 * rows_of_a_block)
    np.testing.assert_allclose(merge_linear(weight, a, b, 1.5, F32), whole, rtol=2e-7, atol=1e-12)


def test_without_a_rank_the_weight_is_cast():
    weight, a, b = factors(5, 7, 2, F32)
    weight[0] = -0.0
    for pair in ((None, None), (a[:0], b[:, :0])):
        assert_rounded(merge_linear(weight, *pair, 1.0, BF16), weight.astype(np.float64))


def test_temporaries_stay_below_64_mib():
    weight, a, b = np.ones((4096, 4096), BF16), np.ones((8, 4096), F32), np.ones((4096, 8), F32)
    tracemalloc.start()
    merged = merge_linear(weight, a, b, 1.0, BF16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - merged.nbytes < 64 * 2**20
