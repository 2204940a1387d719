"""Which blocks the Triton kernels visit, against the whole mask."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels.attention.block_ranges import (
    BlockRange,
    key_range,
    key_ranges,
    query_range,
    query_ranges,
)

# Few shapes, as each is compiled.
CUTS = st.sampled_from([(2, 8), (8, 4), (1, 1)])
WINDOWS = st.none() | st.integers(1, 60) | st.just(2**31 - 1)


def visible(T, window, ids=None):
    t, s = np.arange(T)[:, None], np.arange(T)[None, :]
    mask = (s <= t) & (t - s < (window or np.inf))
    return mask if ids is None else mask & (ids[:, None] == ids[None, :])


def blocks_of(mask, outer, inner, fill):
    """The mask cut into blocks, [outer, inner, rows, columns]; what is past the ends is `fill`."""
    T = len(mask)
    counts = -(-T // outer), -(-T // inner)
    whole = np.full((counts[0] * outer, counts[1] * inner), fill)
    whole[:T, :T] = mask
    return whole.reshape(counts[0], outer, counts[1], inner).swapaxes(1, 2)


def seen_and_full(mask, outer, inner):
    """Blocks that must be visited, and those that may go without a mask."""
    seen = blocks_of(mask, outer, inner, False).any((2, 3))
    # Past the outer end nothing is stored; past the inner end loads need a mask.
    ends = np.ones((len(mask), len(mask)), bool)
    whole = blocks_of(ends, outer, inner, False).any(2).all(2)
    return seen, blocks_of(mask, outer, inner, True).all((2, 3)) & whole


def visited(ranges, inner):
    """Blocks in the range, and those visited without a mask."""
    n = np.arange(inner)
    first, full_first, full_last, last = (np.asarray(x)[..., None] for x in ranges)
    return (first <= n) & (n < last), (full_first <= n) & (n < full_last)


def as_ranges(array):
    return BlockRange(*np.moveaxis(np.asarray(array), -1, 0))


@given(st.integers(1, 50), CUTS, WINDOWS)
def test_without_segments_visits_exactly_the_blocks_with_a_visible_pair(T, cut, window):
    (q, k) = cut
    mask = visible(T, window)
    by_query = [key_range(jnp.int32(t), q, k, T, window) for t in range(0, T, q)]
    by_key = [query_range(jnp.int32(s), q, k, T, window) for s in range(0, T, k)]
    for rows, (outer, inner), seen_by in (
        (by_query, (q, k), mask),
        (by_key, (k, q), mask.T),
    ):
        seen, full = seen_and_full(seen_by, outer, inner)
        for n, row in enumerate(rows):
            walked, unmasked = visited(row, seen.shape[1])
            np.testing.assert_array_equal(walked, seen[n])
            assert (full[n] | ~unmasked).all()
            if (n + 1) * outer <= T:  # the mask does no harm to the others
                np.testing.assert_array_equal(unmasked, full[n])


@given(st.data(), st.sampled_from([7, 24]), CUTS, WINDOWS)
def test_with_any_segments_no_visible_pair_is_missed(data, T, cut, window):
    (q, k) = cut
    ids = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=T, max_size=T)))
    mask, batch = visible(T, window, ids), jnp.asarray(ids, jnp.int32)[None]
    for ranges, outer, inner, seen_by in (
        (key_ranges(batch, batch, q, k, window), q, k, mask),
        (query_ranges(batch, batch, q, k, window), k, q, mask.T),
    ):
        seen, full = seen_and_full(seen_by, outer, inner)
        rows = as_ranges(ranges[0])
        walked, unmasked = visited(rows, seen.shape[1])
        assert (walked | ~seen).all()
        assert (full | ~unmasked).all()
        assert (walked | ~unmasked).all()
        assert (rows.full_first <= rows.full_last).all()


@pytest.mark.parametrize("padding", [0, -1])
@given(st.lists(st.integers(1, 13), min_size=1, max_size=3), CUTS)
def test_packed_rows_with_padding_visit_nothing_in_vain(padding, lengths, cut):
    (q, k) = cut
    ids = np.repeat([*range(1, len(lengths) + 1), padding], [*lengths, 39 - sum(lengths)])
    mask, batch = visible(len(ids), None, ids), jnp.asarray(ids, jnp.int32)[None]
    for ranges, outer, inner, seen_by in (
        (key_ranges(batch, batch, q, k, None), q, k, mask),
        (query_ranges(batch, batch, q, k, None), k, q, mask.T),
    ):
        seen, full = seen_and_full(seen_by, outer, inner)
        walked, unmasked = visited(as_ranges(ranges[0]), seen.shape[1])
        np.testing.assert_array_equal(walked, seen)
        whole = (np.arange(len(full)) + 1) * outer <= len(ids)
        np.testing.assert_array_equal(unmasked[whole], full[whole])


def test_short_documents_are_a_small_part_of_the_work():
    T, document = 4096, 256
    ids = jnp.arange(T, dtype=jnp.int32)[None] // document
    one = as_ranges(key_ranges(jnp.zeros_like(ids), jnp.zeros_like(ids), 128, 64, None)[0])
    packed = as_ranges(key_ranges(ids, ids, 128, 64, None)[0])
    assert (packed.last - packed.first).sum() * 10 < (one.last - one.first).sum()


@pytest.mark.parametrize("window", [None, 9])
def test_keys_of_unknown_segments_have_no_range(window):
    q_ids, kv_ids = jnp.full((1, 24), 5), jnp.full((1, 24), 7)
    for ranges in (
        key_ranges(q_ids, kv_ids, 8, 4, window),
        query_ranges(q_ids, kv_ids, 8, 4, window),
    ):
        rows = as_ranges(ranges[0])
        assert (rows.last <= rows.first).all()
        assert (rows.full_last == rows.full_first).all()
