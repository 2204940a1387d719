"""Rows that are tokens already: TRL's preparation is the oracle; padding by mask, not by value."""

import datasets
import numpy as np
import pytest
import torch

from jaxtune.errors import NotBuiltYetError
from tests.jaxtune.data.test_tokenize import ids, tokenized, trl_dataset, trl_oracle
from tests.jaxtune.data.words import make_tokenizer

ROWS = [[3, 4, 5, 1], [0, 3], [], [4, 4, 4, 4, 4, 4], [1]]
LABELS = [[-100, -100, 5, 1], [-100, -100], [], [-100, -100, -100, -100, 4, 4], [1]]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def labels_of(result):
    assert all(row.dtype == np.int32 for row in result.labels)
    return [row.tolist() for row in result.labels]


@pytest.mark.parity
@trl_oracle
@pytest.mark.parametrize("max_length", [100, 4, 3])
@pytest.mark.parametrize("columns", [{"input_ids": ROWS}, {"input_ids": ROWS, "labels": LABELS}])
def test_rows_and_labels_are_those_of_trl(tokenizer, columns, max_length):
    """Cut alike, no EOS; rows that hold nothing to learn after the cut are left out."""
    theirs = trl_dataset(columns, tokenizer, max_length)
    for dataset in (
        datasets.Dataset.from_dict(columns),
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
    ):
        result = tokenized(dataset, tokenizer, max_length)
        assert ids(result) == list(theirs["input_ids"])
        assert (result.labels is None) == ("labels" not in columns)
        assert (ids(result) if result.labels is None else labels_of(result)) == list(
            theirs["labels"]
        )
        assert result.dropped == len(ROWS) - len(theirs)
        assert result.eos_appended == 0


def test_what_is_cut_is_counted_and_not_kept_in_memory(tokenizer):
    result = tokenized([{"input_ids": [3] * 5}, {"input_ids": [3]}], tokenizer, 2)
    assert (ids(result), result.truncated, result.tokens_lost) == ([[3, 3], [3]], 1, 3)
    assert result.rows[0].base is None


def test_the_text_beside_tokens_is_not_read(tokenizer):
    assert ids(tokenized([{"text": "a b", "input_ids": [5]}], tokenizer)) == [[5]]


def test_padding_is_dropped_on_either_side_and_never_by_value(tokenizer):
    rows = [
        {"input_ids": [2, 2, 3, 2], "labels": [9, 9, 3, 2], "attention_mask": [0, 0, 1, 1]},
        {"input_ids": [2, 3, 2, 2], "labels": [2, 3, 9, 9], "attention_mask": [1, 1, 0, 0]},
        {"input_ids": [2, 3], "labels": [2, 3], "attention_mask": [True, True]},
        {"input_ids": [2], "labels": [2], "attention_mask": [0]},
        {"input_ids": [2, 2], "labels": [2, 2]},
    ]
    result = tokenized(rows, tokenizer)
    assert ids(result) == [[3, 2], [2, 3], [2, 3], [2, 2]]
    assert labels_of(result) == [[3, 2], [2, 3], [2, 3], [2, 2]]
    assert result.dropped == 1


def test_takes_tensors_and_arrays(tokenizer):
    rows = [{"input_ids": torch.tensor([3, 4])}, {"input_ids": np.array([5], np.uint8)}]
    assert ids(tokenized(rows, tokenizer)) == [[3, 4], [5]]
    dataset = datasets.Dataset.from_dict({"input_ids": [[3, 4], [5, 6]]}).with_format("torch")
    assert ids(tokenized(dataset, tokenizer)) == [[3, 4], [5, 6]]


def row(**columns):
    return [{"input_ids": [3, 4], **columns}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (row(labels=[3]), r"one length; row 0 has \{'input_ids': 2, 'labels': 1\} tokens"),
        (row(attention_mask=[1]), r"row 0 has \{'input_ids': 2, 'attention_mask': 1\} tokens"),
        (row() + row(labels=[3, 4]), r"row 1 has \['input_ids', 'labels'\]"),
        (row(labels=[3, 4]) + row(), r"columns of the first, .*; row 1 has \['input_ids'\]"),
        ([*row(), {"text": "a"}], r"columns of the first, \['input_ids'\]; row 1 has \['text'\]"),
        (row(input_ids=[3.0, 4.0]), r"`input_ids` must hold a list of integers a row; row 0"),
        (row(input_ids=[[3], [4]]), r"must hold a list of integers a row; row 0 holds \[\[3\]"),
        (row(input_ids=[[3], [4, 5]]), r"must hold a list of integers a row; row 0 holds \[\[3\]"),
        (row(input_ids="3 4"), r"must hold a list of integers a row; row 0 holds '3 4'"),
        (row(input_ids=None), r"must hold a list of integers a row; row 0 holds None"),
        (row(input_ids=[True, False]), r"must hold a list of integers a row; row 0 holds \[True"),
        (row(input_ids=[3, 2**31]), r"row 0 holds 3 to 2147483648, beyond 32 bits"),
        (row(labels=[None, 4]), r"`labels` must hold a list of integers a row; row 0"),
        (
            [{"input_ids": [3, 4, 5], "attention_mask": [1, 0, 1]}],
            r"zeros at the ends of the row only; row 0 has \[1, 0, 1\]\. Take",
        ),
        (row(attention_mask=[1, 2]), r"`attention_mask` must be ones, .* row 0 has \[1, 2\]"),
        (row(labels=[-100, -100]), r"all 1 rows are empty or hold nothing but -100 in their first"),
        (
            datasets.Dataset.from_dict({"input_ids": [[3], None]}),
            r"must hold a list of integers a row; row 1 holds",
        ),
    ],
    ids=str,
)
def test_refuses_rows_that_are_not_tokens(tokenizer, rows, message):
    with pytest.raises(ValueError, match=message):
        tokenized(rows, tokenizer)


def test_refuses_a_formatting_func_beside_tokens(tokenizer):
    with pytest.raises(ValueError, match=r"`formatting_func` must be None for rows that are tok"):
        tokenized(row(), tokenizer, formatting_func=lambda row: row["text"])


@pytest.mark.parametrize("name", ["completion_mask", "assistant_masks", "seq_lengths"])
def test_trls_masks_and_packed_rows_are_not_built_yet(tokenizer, name):
    with pytest.raises(NotBuiltYetError, match=rf"column `{name}` are not built yet\. Give `labe"):
        tokenized(row(**{name: [0, 1]}), tokenizer)
    if name == "seq_lengths":  # Labels do not keep documents apart.
        with pytest.raises(NotBuiltYetError, match="one document a row"):
            tokenized(row(labels=[3, 4], seq_lengths=[1, 1]), tokenizer)


def test_labels_say_what_a_mask_would(tokenizer):
    """As in TRL, which leaves a column of labels as it is."""
    result = tokenized(row(labels=[-100, 4], completion_mask=[1, 0]), tokenizer)
    assert labels_of(result) == [[-100, 4]]
