"""Answers found by markers: the notebooks' ones give the masks that messages give."""

import numpy as np
import pytest

from jaxtune.data.batch import IGNORE
from jaxtune.data.response_markers import Markers, ResponseMask, probed_markers
from jaxtune.data.row_options import RowOptions
from jaxtune.data.tokenize import tokenize_dataset
from tests.jaxtune.data.chats import conversations, real_tokenizer
from tests.jaxtune.data.words import make_tokenizer

# As Unsloth's notebooks pass them.
NOTEBOOKS = {
    "llama3.2": (
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": ("<start_of_turn>user\n", "<start_of_turn>model\n"),
    "mistral_v3": ("[INST]", "[/INST]"),
}
WORDS = make_tokenizer(words=("user", "assistant", ":"))
A, B, C, D = 3, 4, 5, 6
USER, ASSISTANT, COLON = 11, 12, 13
MARKERS = Markers(instruction="user :", response="assistant :")


def rows_of(texts, tokenizer=WORDS, max_length=4096):
    rows = [{"text": text} for text in texts]
    return tokenize_dataset(rows, tokenizer, RowOptions(max_length=max_length))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_markers_of_notebooks_give_the_masks_of_messages(assets, name):
    tokenizer = real_tokenizer(assets, name)
    chats = conversations(assets)[:60]
    rows = [{"messages": chat} for chat in chats]
    options = {"text_field": "text", "max_length": 400}
    expected = tokenize_dataset(rows, tokenizer, RowOptions(**options, assistant_only_loss=True))
    texts = tokenize_dataset(rows, tokenizer, RowOptions(**options))
    given = Markers(instruction=NOTEBOOKS[name][0], response=NOTEBOOKS[name][1])
    assert probed_markers(tokenizer) == given
    result = ResponseMask(tokenizer, given).apply(texts, 400)
    assert len(result.rows) == len(expected.rows)
    assert result.dropped == expected.dropped > 0
    assert result.truncated > 0
    for ours, theirs in zip(result.labels, expected.labels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_answer_ends_at_the_next_question_or_the_row():
    text = "user : a assistant : b </s> user : c assistant : d"
    result = ResponseMask(WORDS, MARKERS).apply(rows_of([text]), 100)
    head = [IGNORE] * 6
    assert result.rows[0].tolist()[:7] == [0, USER, COLON, A, ASSISTANT, COLON, B]
    assert result.labels[0].tolist() == [*head, B, 1, *head[:5], D, 1]
    last = ResponseMask(WORDS, MARKERS, last_only=True).apply(rows_of([text]), 100)
    assert last.labels[0].tolist() == [IGNORE] * 13 + [D, 1]
    assert (
        result.learned == "what after 'assistant :', up to 'user :'" or "follows" in result.learned
    )


def test_a_row_that_was_cut_in_a_marker_does_not_teach_the_marker():
    text = "user : a assistant : b </s> user : c assistant : d"
    result = ResponseMask(WORDS, MARKERS).apply(rows_of([text, text], max_length=9), 9)
    assert result.rows[0].tolist()[-2:] == [1, USER]
    assert result.labels[0].tolist() == [IGNORE] * 6 + [B, 1, IGNORE]


def test_labels_that_are_ignored_stay_ignored():
    ids = np.array([0, USER, COLON, A, ASSISTANT, COLON, B, C, 1], np.int32)
    had = np.where(ids == C, IGNORE, ids)
    made = ResponseMask(WORDS, MARKERS).labels(ids, had)
    assert made.tolist() == [IGNORE] * 6 + [B, IGNORE, 1]
    assert made.dtype == np.int32


def test_rows_without_an_answer_are_left_out_and_counted():
    texts = ["user : a assistant : b", "user : c"]
    result = ResponseMask(WORDS, MARKERS).apply(rows_of(texts), 100)
    assert (len(result.rows), result.dropped, result.eos_appended) == (1, 1, 2)


@pytest.mark.parametrize(
    ("instruction", "response", "message"),
    [
        ("user :", "h :", r"`response_part` must occur in the rows; 'h :', the tokens \[10, 13\]"),
        ("h :", "assistant :", r"`instruction_part` must occur .* in none of 1"),
        ("", "assistant :", r"`instruction_part` must be text that has tokens; got ''"),
    ],
)
def test_refuses_markers_that_are_not_there(instruction, response, message):
    rows = rows_of(["user : a assistant : b"])
    with pytest.raises(ValueError, match=message):
        ResponseMask(WORDS, Markers(instruction=instruction, response=response)).apply(rows, 100)


def test_rows_cut_before_every_answer_say_so():
    rows = rows_of(["user : a b c assistant : d"], max_length=5)
    message = r"in none of 1, 1 of them cut at 5 tokens\..*raise max_seq_length"
    with pytest.raises(ValueError, match=message):
        ResponseMask(WORDS, MARKERS).apply(rows, 5)


def test_markers_whose_tokens_depend_on_their_neighbours_are_found_inexactly(assets):
    """A bracket behind a letter, and a colon before two new lines, are other tokens than alone."""
    for name, text, marker in (
        ("llama2", "[INST] hi[/INST] yes", "[/INST]"),
        ("llama3.2", "[INST] hi\n### A:\n\nyes", "### A:\n"),
    ):
        tokenizer = real_tokenizer(assets, name)
        ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
        markers = Markers(instruction="[INST]", response=marker)
        exact = ResponseMask(tokenizer, markers).labels(ids)
        assert (exact == IGNORE).all()
        loose = ResponseMask(tokenizer, markers, exact=False).labels(ids)
        assert tokenizer.decode(loose[loose != IGNORE]).strip() == "yes"


def test_markers_that_the_template_does_not_show_are_refused():
    tokenizer = make_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(
        ValueError, match=r"must be seen in the .* template.*Pass instruction_part="
    ):
        probed_markers(tokenizer)
