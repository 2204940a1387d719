"""Windows and padding: every row once an epoch, masked by length and never by token value."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from jaxtune.data.batch import IGNORE
from jaxtune.data.collate import (
    GRANULE,
    MAX_BUCKETS,
    Place,
    bucket_lengths,
    collate,
    windows_per_epoch,
)
from jaxtune.data.plan import Request, make_plan
from jaxtune.data.rows import TokenizedRows

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=30)


def marked(lengths):
    """Rows that can be told apart: row i is filled with i; row 0 is all pad ids."""
    return TokenizedRows(rows=[np.full(n, i, np.int32) for i, n in enumerate(lengths)])


def epoch(rows, batch_size, accumulation, *, seed=3407, number=0):
    lengths = np.array([len(row) for row in rows.rows])
    request = Request(
        batch_size=batch_size,
        accumulation=accumulation,
        max_length=1000,
        seed=seed,
        resplit=False,
    )
    return list(make_plan(lengths, request).windows(rows, Place(epoch=number)))


def rows_of(window):
    """The rows of a window as its labels hold them, empty rows left out."""
    labels = np.asarray(window.batch.labels)
    return [row[row != IGNORE] for row in labels if (row != IGNORE).any()]


@given(LENGTHS, st.integers(1, 4), st.integers(1, 3))
def test_every_row_comes_once_an_epoch_in_torchs_order(lengths, batch_size, accumulation):
    found = [
        row
        for window in epoch(marked(lengths), batch_size, accumulation)
        for row in rows_of(window)
    ]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(3407)).tolist()
    assert [int(row[0]) for row in found] == order
    assert [len(row) for row in found] == [lengths[i] for i in order]


def test_the_second_epoch_has_an_order_of_its_own():
    rows = marked([2] * 20)
    orders = [
        [int(row[0]) for window in epoch(rows, 2, 2, number=n) for row in rows_of(window)]
        for n in (0, 1)
    ]
    expected = torch.randperm(20, generator=torch.Generator().manual_seed(3408)).tolist()
    assert orders[1] == expected != orders[0]


@given(LENGTHS, st.integers(1, 4), st.integers(1, 3))
def test_windows_count_their_rows_and_tokens(lengths, batch_size, accumulation):
    found = epoch(marked(lengths), batch_size, accumulation)
    assert sum(window.rows for window in found) == len(lengths)
    assert sum(window.tokens for window in found) == sum(lengths)
    for window in found:
        kept = rows_of(window)
        assert (window.rows, window.tokens) == (len(kept), sum(map(len, kept)))


@pytest.mark.parity
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_steps_an_epoch_are_those_of_transformers(rows, batch_size, accumulation):
    """`Trainer.set_initial_training_values`: full windows, and one for the remainder."""
    length = len(DataLoader(range(rows), batch_size=batch_size))
    expected = max(length // accumulation + int(length % accumulation > 0), 1)
    assert windows_per_epoch(rows, batch_size, accumulation) == expected
    assert len(epoch(marked([1] * rows), batch_size, accumulation)) == expected


def test_the_last_window_is_filled_with_empty_rows():
    *full, last = epoch(marked([3] * 7), 2, 2)
    assert [window.batch.labels.shape for window in (*full, last)] == [(4, GRANULE)] * 2
    assert last.rows == 3
    np.testing.assert_array_equal(last.batch.labels[3], np.full(GRANULE, IGNORE))


@given(LENGTHS, st.integers(300, 1000))
def test_buckets_are_few_ascending_and_cover_every_row(lengths, max_length):
    buckets = bucket_lengths(np.array(lengths), max_length)
    assert 1 <= len(buckets) <= MAX_BUCKETS == 4
    assert list(buckets) == sorted(set(buckets))
    assert max(lengths) <= buckets[-1] <= max_length
    assert all(bucket % GRANULE == 0 or bucket == max_length for bucket in buckets)


def test_the_limit_bounds_the_longest_bucket():
    assert bucket_lengths(np.array([70, 100]), 100)[-1] == 100


def test_rows_of_no_tokens_get_a_bucket_that_holds_something():
    assert bucket_lengths(np.array([0, 0]), 100) == (GRANULE,)


@given(LENGTHS, st.integers(1, 4))
def test_each_window_takes_the_smallest_bucket_that_holds_it(lengths, batch_size):
    rows = marked(lengths)
    buckets = bucket_lengths(np.array(lengths), 1000)
    for window in epoch(rows, batch_size, 1):
        longest = max(map(len, rows_of(window)))
        assert window.batch.input_ids.shape[1] == min(b for b in buckets if b >= longest)


def some_rows(rows, labels=None):
    arrays = [
        None if given is None else [np.array(row, np.int32) for row in given]
        for given in (rows, labels)
    ]
    return TokenizedRows(rows=arrays[0], labels=arrays[1])


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=4))
def test_labels_are_ignored_on_padding_and_nowhere_else(rows):
    """Id 0 is also the pad id, and a real token here."""
    batch = collate(some_rows(rows), range(len(rows)), 5, 8)
    assert batch.layout == "causal"
    for place in range(5):
        row = rows[place] if place < len(rows) else []
        padding = 8 - len(row)
        assert batch.input_ids[place].tolist() == row + [0] * padding
        assert batch.labels[place].tolist() == row + [IGNORE] * padding


ROWS = [[5, 0, 7, 2], [0], [3, 2]]


@pytest.mark.parity
@pytest.mark.parametrize("labels", [None, [[IGNORE, 0, IGNORE, 2], [0], [IGNORE, 4]]])
def test_equals_trls_collator(labels):
    examples = [{"input_ids": row} for row in ROWS]
    if labels:
        examples = [{**e, "labels": row} for e, row in zip(examples, labels, strict=True)]
    chosen = [2, 0, 1]
    theirs = DataCollatorForLanguageModeling(pad_token_id=0)([examples[i] for i in chosen])
    ours = collate(some_rows(ROWS, labels), chosen, 3, 4)
    np.testing.assert_array_equal(ours.input_ids, theirs["input_ids"].numpy())
    np.testing.assert_array_equal(ours.labels, theirs["labels"].numpy())


def test_windows_carry_the_labels_of_their_rows():
    """And count the tokens of the rows, learnt or not."""
    labels = [[IGNORE, 10, IGNORE, 11], [12], [IGNORE, 13]]
    rows = some_rows(ROWS, labels)
    found = epoch(rows, 1, 1)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(3407)).tolist()
    assert [window.tokens for window in found] == [len(ROWS[i]) for i in order]
    for window, number in zip(found, order, strict=True):
        length = len(ROWS[number])
        assert window.batch.input_ids[0, :length].tolist() == ROWS[number]
        assert window.batch.labels[0, :length].tolist() == labels[number]
        assert (window.batch.labels[0, length:] == IGNORE).all()
