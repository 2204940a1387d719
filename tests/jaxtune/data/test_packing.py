"""Bins: TRL's, every token once, and never over the capacity."""

import time

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import pack_dataset

from jaxtune.config import PACKING_STRATEGIES as STRATEGIES
from jaxtune.data.packing import GROUP, best_fit, one_a_bin, pack

LENGTHS = st.lists(st.integers(0, 70), max_size=40)


def lengths_of(rows, seed=0):
    """Of a long-tailed data set, with empty rows, ties and rows over any capacity below."""
    drawn = np.random.default_rng(seed).lognormal(4, 0.8, rows).astype(np.int64)
    drawn[::97] = 0
    return drawn


def tokens_of(bins):
    """(row, place) of every token, bin by bin."""
    return [
        [(row, place) for row, start, stop in bins.pieces(n) for place in range(start, stop)]
        for n in range(len(bins))
    ]


@pytest.mark.parity
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("capacity", [100, 257])
def test_bins_are_those_of_trl(strategy, capacity):
    """2,300 rows: two whole batches of `datasets.map` and a part of one."""
    lengths = lengths_of(2300)
    rows = [[row * 10_000 + place for place in range(n)] for row, n in enumerate(lengths)]
    data = datasets.Dataset.from_dict({"input_ids": rows})
    theirs = pack_dataset(data, capacity, strategy)
    bins = pack(lengths, capacity, strategy)
    ours = [[row * 10_000 + place for row, place in tokens] for tokens in tokens_of(bins)]
    assert ours == theirs["input_ids"]
    if strategy != "wrapped":  # TRL's wrapped rows do not know their documents
        found = [[stop - start for _, start, stop in bins.pieces(n)] for n in range(len(bins))]
        assert found == theirs["seq_lengths"]


@given(LENGTHS, st.integers(1, 80), st.sampled_from(STRATEGIES), st.sampled_from([3, 7, None]))
def test_every_token_comes_once_and_bins_keep_to_the_capacity(lengths, capacity, strategy, group):
    bins = pack(np.array(lengths, np.int64), capacity, strategy, group)
    found = tokens_of(bins)
    limit = capacity if strategy == "bfd" else max(lengths, default=0)
    wanted = [(row, place) for row, n in enumerate(lengths) for place in range(min(n, limit))]
    assert sorted(token for tokens in found for token in tokens) == wanted
    assert all(0 < len(tokens) <= capacity for tokens in found)
    assert bins.tokens().tolist() == [len(tokens) for tokens in found]
    if strategy == "wrapped" and group is None:
        assert all(len(tokens) == capacity for tokens in found[:-1])
        assert [token for tokens in found for token in tokens] == wanted


@given(LENGTHS)
def test_rows_that_are_not_packed_have_a_bin_each(lengths):
    bins = one_a_bin(np.array(lengths, np.int64))
    assert bins.tokens().tolist() == lengths
    assert [bins.pieces(n) for n in range(len(bins))] == [
        [(row, 0, length)] for row, length in enumerate(lengths)
    ]


def test_all_rows_together_leave_fewer_gaps_than_groups():
    lengths = lengths_of(3 * GROUP)
    assert len(pack(lengths, 512, "bfd", None)) < len(pack(lengths, 512, "bfd"))


def test_bins_that_are_open_are_filled_first_and_the_tightest_of_them():
    assert best_fit([5, 4, 3, 2], 4, opened=[9, 5]) == [1, 0, 0, 0]
    assert best_fit([5, 4, 4], 4, opened=[9]) == [0, 0, 1]
    assert best_fit([5, 5], 4, opened=[9]) is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_hundred_thousand_rows_take_seconds(strategy):
    lengths = lengths_of(100_000)
    started = time.perf_counter()
    pack(lengths, 2048, strategy)
    pack(lengths, 2048, strategy, None)
    assert time.perf_counter() - started < 5


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"must be one of 'bfd', .*; got 'ffd'\. Pass"):
        pack(np.array([1]), 4, "ffd")
    with pytest.raises(ValueError, match="at least 1 token; got 0"):
        pack(np.array([1]), 0, "bfd")
