"""Micro-batches of a window: every row once, in few bins of one or two lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.data.resplit import GRANULE, OVERHEAD, choose_shapes, cost_of, rebin, slots

ROWS = st.lists(st.integers(1, 40), min_size=1, max_size=24)
SHAPES = st.one_of(
    st.tuples(st.integers(40, 90)), st.tuples(st.integers(1, 39), st.integers(40, 90))
)


@given(ROWS, SHAPES, st.sampled_from([1, 2, 3]))
def test_every_row_is_in_one_bin_and_bins_keep_to_their_length(rows, shapes, devices):
    cut = rebin(rows, shapes, devices)
    assert len(cut) == len(shapes)
    assert sorted(row for bins in cut for its in bins for row in its) == list(range(len(rows)))
    for bins, length in zip(cut, shapes, strict=True):
        assert all(sum(rows[row] for row in its) <= length for its in bins)


@given(ROWS, SHAPES, st.sampled_from([1, 2, 3]))
def test_slots_hold_any_window(rows, shapes, devices):
    bounds = slots(shapes, len(rows), max(rows), devices)
    for bins, bound in zip(rebin(rows, shapes, devices), bounds, strict=True):
        assert -(-len(bins) // devices) <= bound <= len(rows)


@given(ROWS, st.integers(1, 39), st.integers(40, 90))
def test_a_second_length_never_costs_more(rows, short, long):
    two, one = (cost_of(rebin(rows, shapes, 1), shapes, 1) for shapes in ((short, long), (long,)))
    assert two <= one


def test_the_cheaper_lengths_are_taken():
    """A long bin for 100 + 30, a short one for what is left; two long ones cost more."""
    assert rebin([30, 100, 50], (64, 130)) == ([[2]], [[1, 0]])
    assert rebin([30, 100, 50], (130,)) == ([[1, 0], [2]],)
    assert cost_of(([[2]], [[1, 0]]), (64, 130), 1) == 64 + 130 + 2 * OVERHEAD


def test_few_micro_batches_are_preferred_to_little_padding():
    assert rebin([60] * 4, (60, 260)) == ([], [[0, 1, 2, 3]])


def test_a_row_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="got 40 tokens for a row of 41"):
        rebin([41], (40,))


def test_shapes_hold_the_longest_row_and_keep_to_the_capacity():
    draw = np.random.default_rng(0)
    windows = [draw.integers(30, 300, 8).tolist() for _ in range(20)]
    shapes = choose_shapes(windows, 320, 1280)
    assert shapes == tuple(sorted(shapes))
    assert 320 <= shapes[-1] <= 1280
    assert all(length % GRANULE == 0 for length in shapes)
    costs = [
        sum(cost_of(rebin(window, tried, 1), tried, 1) for window in windows)
        for tried in (shapes, (320,), (1280,))
    ]
    assert costs[0] == min(costs)


def test_one_shape_suffices_for_rows_of_one_length():
    assert choose_shapes([[64] * 8] * 3, 64, 128) == (128,)


def test_rows_of_less_than_a_granule_are_not_blown_up():
    assert choose_shapes([[10, 4, 7, 9]] * 3, 10, 20) == (20,)
