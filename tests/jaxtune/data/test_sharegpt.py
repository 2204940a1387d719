"""Conversations of other names and shapes become messages; shuffles are those of `datasets`."""

import datasets
import pytest

from jaxtune import standardize_data_formats, standardize_sharegpt, to_sharegpt
from tests.jaxtune.data.chats import conversations

SHAREGPT = [
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 1},
    {"conversations": [{"from": "system", "value": "c"}, {"from": "human", "value": "d"}], "id": 2},
]
MESSAGES = [
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "system", "content": "c"}, {"role": "user", "content": "d"}],
]
KINDS = pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
ROWS = [
    {
        "instruction": f"do {n}",
        "input": "" if n % 2 else f"in {n} [[x]] {{y}}",
        "output": f"out {n}",
    }
    for n in range(7)
]


@KINDS
@pytest.mark.parametrize("function", [standardize_sharegpt, standardize_data_formats])
def test_senders_become_roles(kind, function):
    given = kind(SHAREGPT)
    made = function(given)
    assert [row["conversations"] for row in made] == MESSAGES
    assert [row["id"] for row in made] == [1, 2]
    assert list(given) == SHAREGPT
    assert type(made) is type(given)


@KINDS
def test_keys_of_any_name_are_told_by_their_values(kind):
    rows = [
        {"conversations": [{"words": f"w{n}", "who": "asker"}, {"words": f"v{n}", "who": "output"}]}
        for n in range(3)
    ]
    made = standardize_sharegpt(kind(rows), aliases_for_user=["asker"])
    assert made[1]["conversations"] == [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "v1"},
    ]


def test_rows_without_the_column_are_returned_as_they_are():
    rows = [{"text": "a"}]
    assert standardize_sharegpt(rows) is rows


@KINDS
def test_columns_become_conversations(kind):
    made = to_sharegpt(kind(ROWS), merged_prompt="{instruction}[[\nInput: {input}]]!")
    assert made[0] == {
        "conversations": [
            {"from": "human", "value": "do 0\nInput: in 0 [[x]] {y}!"},
            {"from": "gpt", "value": "out 0"},
        ]
    }
    assert made[1]["conversations"][0]["value"] == "do 1!"
    kept = to_sharegpt(kind(ROWS), remove_unused_columns=False)
    assert kept[2]["output"] == "out 2"
    assert kept[2]["conversations"][0] == {"from": "human", "value": "do 2"}


@KINDS
def test_conversations_are_extended_in_the_order_of_datasets(kind):
    made = to_sharegpt(kind(ROWS), conversation_extension=3, random_state=5)
    table = datasets.Dataset.from_list(ROWS)
    others = [table.shuffle(seed=5 + n)["instruction"] for n in (1, 2)]
    for number, row in enumerate(made):
        asked = [turn["value"] for turn in row["conversations"][::2]]
        assert asked == [f"do {number}", others[0][number], others[1][number]]


def test_the_two_lead_to_messages(assets):
    chats = conversations(assets)[:5]
    rows = [{"q": chat[0]["content"], "a": chat[1]["content"]} for chat in chats]
    made = to_sharegpt(rows, merged_column_name="q", output_column_name="a")
    made = standardize_sharegpt(made)
    assert [row["conversations"] for row in made] == [chat[:2] for chat in chats]


class Processor:
    image_processor = None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: standardize_sharegpt(
                [*SHAREGPT, {"conversations": [{"from": "tool", "value": "a"}]}]
            ),
            TypeError,
            r"must have `from`, one of \['assistant'.*; row 2 has \{'from': 'tool'",
        ),
        (
            lambda: standardize_sharegpt([*SHAREGPT, {"conversations": None}]),
            ValueError,
            r"must hold a list of messages; row 2 holds NoneType",
        ),
        (
            lambda: standardize_sharegpt([{"conversations": [{"a": 1, "b": 2, "c": 3}]}]),
            ValueError,
            r"must have two keys.* have \['a', 'b', 'c'\]",
        ),
        (
            lambda: standardize_sharegpt(SHAREGPT, Processor()),
            ValueError,
            r"must be one of text; got a processor",
        ),
        (
            lambda: to_sharegpt(ROWS, merged_prompt="{nothing}"),
            ValueError,
            r"columns \['nothing', 'output'\] must be there; .* has \['instruction'",
        ),
        (
            lambda: to_sharegpt([ROWS[0], {**ROWS[0], "output": None}]),
            ValueError,
            r"`output` must hold text; row 1 holds NoneType",
        ),
        (
            lambda: to_sharegpt([{**ROWS[0], "instruction": None}]),
            ValueError,
            r"`instruction` must hold text; row 0 holds NoneType.*double brackets",
        ),
        (lambda: to_sharegpt(ROWS, conversation_extension=0), ValueError, r"at least 1; got 0"),
    ],
)
def test_refuses_by_row(call, error, message):
    with pytest.raises(error, match=message):
        call()
