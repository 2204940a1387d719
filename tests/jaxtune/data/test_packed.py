"""Packed arrays: what stands where, whose it is, and at which position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.config import PACKING_STRATEGIES as STRATEGIES
from jaxtune.data.batch import IGNORE
from jaxtune.data.packed import micro_batches
from jaxtune.data.packing import pack
from jaxtune.data.rows import TokenizedRows

ROWS = [[5, 0, 7, 2], [9], [3, 0, 2]]
LABELS = [[IGNORE, 0, IGNORE, 2], [9], [IGNORE, 0, 2]]


def some_rows(rows, labels=None):
    arrays = [
        None if given is None else [np.array(row, np.int32) for row in given]
        for given in (rows, labels)
    ]
    return TokenizedRows(rows=arrays[0], labels=arrays[1])


@pytest.mark.parametrize("labels", [None, LABELS])
def test_pieces_follow_each_other_with_padding_after_them(labels):
    """Id 0 is a real token, and stands on the padding too."""
    bins = [[(0, 1, 4), (2, 0, 3)], [(1, 0, 1)], [(0, 0, 1)]]
    window = micro_batches(some_rows(ROWS, labels), [bins], size=2, shapes=[(3, 7)])
    (stack,) = window.stacks
    assert [int(used) for used in window.used] == [2]
    assert stack.input_ids.shape == (3, 2, 7)
    assert stack.input_ids[0].tolist() == [[0, 7, 2, 3, 0, 2, 0], [9, 0, 0, 0, 0, 0, 0]]
    assert stack.segment_ids[0].tolist() == [[1, 1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0, 0]]
    assert stack.positions[0].tolist() == [[0, 1, 2, 0, 1, 2, 0], [0] * 7]
    first = ROWS[0][1:] + ROWS[2] if labels is None else LABELS[0][1:] + LABELS[2]
    assert stack.labels[0].tolist() == [[*first, IGNORE], [9] + [IGNORE] * 6]
    assert stack.input_ids[1].tolist() == [[5] + [0] * 6, [0] * 7]
    assert not stack.segment_ids[2].any()
    assert (stack.labels[2] == IGNORE).all()
    stack.check()


def test_each_shape_has_a_stack_and_a_count():
    shapes = [(2, 3), (1, 8)]
    bins = [[[(2, 0, 3)], [(1, 0, 1)]], []]
    window = micro_batches(some_rows(ROWS), bins, size=1, shapes=shapes)
    assert [stack.labels.shape for stack in window.stacks] == [(2, 1, 3), (1, 1, 8)]
    assert [int(used) for used in window.used] == [2, 0]
    assert window.first().input_ids.tolist() == [[3, 0, 2]]
    assert window.first().layout == "packed"


def test_a_window_of_nothing_has_no_first_micro_batch():
    with pytest.raises(ValueError, match="must hold a micro-batch; got none"):
        micro_batches(some_rows(ROWS), [[]], size=1, shapes=[(1, 4)]).first()


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=20), min_size=1, max_size=9),
    st.sampled_from(STRATEGIES),
)
def test_the_tokens_of_packed_rows_are_those_of_the_bins(rows, strategy):
    data = some_rows(rows)
    bins = pack(np.array([len(row) for row in rows]), 8, strategy)
    pieces = [bins.pieces(n) for n in range(len(bins))]
    window = micro_batches(data, [pieces], size=1, shapes=[(len(bins), 8)])
    (stack,) = window.stacks
    for place, its in enumerate(pieces):
        wanted = [token for row, start, stop in its for token in rows[row][start:stop]]
        kept = stack.segment_ids[place, 0] > 0
        assert stack.input_ids[place, 0][kept].tolist() == wanted
        assert stack.labels[place, 0][kept].tolist() == wanted
        changes = np.flatnonzero(stack.positions[place, 0][kept] == 0)
        assert changes.tolist() == np.cumsum([0] + [b - a for _, a, b in its])[:-1].tolist()
