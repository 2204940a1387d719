"""Rows that cannot be learned: named, counted, refused or left out, whatever their kind."""

import datasets
import pytest

from jaxtune.data.row_options import RowOptions
from tests.jaxtune.data.test_chat_rows import CHAT, WORDS
from tests.jaxtune.data.test_tokenize import ids, tokenized
from tests.jaxtune.data.words import make_tokenizer

# A good row of each kind, bad ones, and the options.
BAD = {
    "a missing column": ({"text": "a"}, [{"body": "a"}], {}),
    "none": ({"text": "a"}, [{"text": None}], {}),
    "empty text": ({"text": "a"}, [{"text": ""}, {"text": " \n"}], {}),
    "no row": ({"text": "a"}, ["a"], {}),
    "ids outside": ({"text": "a"}, [{"text": "h"}], {"vocab_size": 10}),
    "negative ids": ({"input_ids": [1, 2]}, [{"input_ids": [-1, 2]}], {"vocab_size": 10}),
    "no ids": ({"input_ids": [1, 2]}, [{"input_ids": None}, {"input_ids": ["a"]}], {}),
    "a misspelt role": ({"messages": CHAT}, [{"messages": [{**CHAT[0], "role": "asistant"}]}], {}),
    "an unknown sender": (
        {"messages": CHAT},
        [{"messages": [{"from": "observation", "value": "a"}]}],
        {},
    ),
    "no messages": ({"messages": CHAT}, [{"messages": []}, {"messages": None}], {}),
    "half a pair": (
        {"prompt": "a", "completion": " b"},
        [{"prompt": "a"}, {"prompt": "a", "completion": None}, {"prompt": "", "completion": ""}],
        {},
    ),
    "a function's failure": (
        {"body": "a"},
        [{"body": None}, {"body": ""}],
        {"formatting_func": lambda row: row["body"] + ""},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_refused_with_their_numbers_or_skipped_and_counted(name):
    good, bad, options = BAD[name]
    rows = [good, *bad, good, *bad]
    numbers = [n for n, row in enumerate(rows) if row is not good]
    with pytest.raises(ValueError, match=rf"(row|of) {numbers[0]}\b.*bad_rows='skip'") as caught:
        tokenized(rows, WORDS, **options)
    shown = ", ".join(map(str, numbers[:5]))
    assert f"{len(numbers)} rows are bad: rows {shown}" in str(caught.value)
    result = tokenized(rows, WORDS, bad_rows="skip", **options)
    assert ids(result) == ids(tokenized([good, good], WORDS, **options))
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith(f"{len(numbers)} bad, rows {shown}")


def test_a_batch_that_fails_is_asked_row_by_row():
    """Its good rows are learned where bad ones are left out."""

    def function(batch):
        return {"text": [body + "" for body in batch["body"]]}

    rows = [{"body": body} for body in ("a", "b", None, "c")]
    result = tokenized(rows, WORDS, formatting_func=function, bad_rows="skip")
    assert ids(result) == [[0, 3, 1], [0, 4, 1], [0, 5, 1]]
    assert result.skipped[0].startswith("1 bad, row 2: `formatting_func` raised TypeError")
    with pytest.raises(ValueError, match=r"raised TypeError: .* for rows 0 to 3"):
        tokenized(rows, WORDS, formatting_func=function)


def test_long_rows_are_cut_refused_or_skipped():
    tokenizer, rows = make_tokenizer(), [{"text": text} for text in ("a", "a b c d", "b")]
    cut = tokenized(rows, tokenizer, 4)
    assert ids(cut) == [[0, 3, 1], [0, 3, 4, 5], [0, 4, 1]]
    assert (cut.truncated, cut.tokens_lost, cut.first_truncated) == (1, 2, (1,))
    skipped = tokenized(rows, tokenizer, 4, long_rows="skip")
    assert ids(skipped) == [[0, 3, 1], [0, 4, 1]]
    assert skipped.skipped[0].startswith("1 too long, row 1: a row must have at most 4 tokens")
    with pytest.raises(ValueError, match=r"row 1 has 6\. Raise the limit .*long_rows='skip'"):
        tokenized(rows, tokenizer, 4, long_rows="refuse")


def test_numbers_are_those_of_the_data_set_beyond_a_batch():
    dataset = datasets.Dataset.from_dict({"text": ["a"] * 1500 + [None]})
    with pytest.raises(ValueError, match=r"row 1500 holds NoneType"):
        tokenized(dataset, WORDS)


def test_a_thousand_bad_rows_are_enough():
    asked = []

    def function(row):
        asked.append(row)
        raise KeyError("body")

    with pytest.raises(ValueError, match=r"1,000 rows or more are bad: rows 0, 1, 2, 3, 4 and 995"):
        tokenized([{"text": "a"}] * 5000, WORDS, formatting_func=function)
    assert len(asked) <= 2000


def test_nothing_left_says_what_was_skipped():
    with pytest.raises(ValueError, match=r"all 0 rows .*Skipped: 2 bad, rows 0, 1: the column"):
        tokenized([{"text": None}, {"text": ""}], WORDS, bad_rows="skip")


def test_options_are_checked():
    for name in ("bad_rows", "long_rows"):
        with pytest.raises(ValueError, match=rf"`{name}` must be one of .*; got 'ignore'"):
            RowOptions(max_length=4, **{name: "ignore"})


@pytest.mark.parametrize("name", ["image", "images", "pixel_values", "videos"])
def test_rows_of_images_are_refused(name):
    rows = [{"text": "a", name: [0]}]
    with pytest.raises(ValueError, match=rf"rows must be text: .* got the column `{name}`"):
        tokenized(rows, WORDS)
