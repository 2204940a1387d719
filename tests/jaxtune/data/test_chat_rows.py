"""Rows of chats: TRL's ids and masks, and the assistant's words found by their characters."""

import json
import re
from pathlib import Path

import datasets
import jinja2
import numpy as np
import pytest
import trl

from jaxtune.data.batch import IGNORE
from jaxtune.data.row_options import RowOptions
from jaxtune.data.tokenize import tokenize_dataset
from tests.jaxtune.data.chats import ANSWERS, conversations, real_tokenizer, trl_prepared
from tests.jaxtune.data.test_tokenize import ids, state_of, trl_oracle
from tests.jaxtune.data.words import make_tokenizer


def _slow(*values):
    """Real tokenizers of many entries: TRL's `datasets.map` hashes them again and again."""
    return pytest.param(*values, marks=pytest.mark.slow)


TEMPLATES = Path(trl.__file__).parent / "chat_templates"
WORDS = make_tokenizer(
    words=("user", "assistant", "system", ":"),
    chat_template=(
        "{{ bos_token }}{% for m in messages %} {{ m.role }} : {{ m.content }}"
        "{% if m.role == 'assistant' %} </s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} assistant :{% endif %}"
    ),
)
USER, ASSISTANT, COLON = 11, 12, 14
CHAT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e"},
]


def tokenized(rows, tokenizer=WORDS, max_length=4096, **options):
    return tokenize_dataset(rows, tokenizer, RowOptions(max_length=max_length, **options))


def labels_of(result):
    return [row.tolist() for row in result.labels]


def with_template(assets, name, template):
    """A copy of a real tokenizer with a template of TRL's."""
    tokenizer = real_tokenizer(assets, name)
    tokenizer = type(tokenizer).from_pretrained(assets / "tokenizers" / name)
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    return tokenizer


@pytest.mark.parity
@trl_oracle
@pytest.mark.parametrize("name", [_slow("llama3.2"), _slow("gemma"), "mistral_v3", "llama2"])
def test_prompts_and_completions_give_the_ids_and_masks_of_trl(assets, name):
    tokenizer = real_tokenizer(assets, name)
    chats = conversations(assets)[:12]
    plain = [
        {"prompt": f"Q: {chat[0]['content']}\nA:", "completion": f" {chat[1]['content']}"}
        for chat in chats
    ]
    messages = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    for rows in (plain, messages):
        result = tokenized(rows, tokenizer, 1000)
        expected = trl_prepared(rows, tokenizer, completion_only=True, max_length=1000)
        assert (ids(result), labels_of(result)) == expected
        whole = tokenized(rows, tokenizer, 1000, completion_only_loss=False)
        assert whole.labels is None
        assert ids(whole) == trl_prepared(rows, tokenizer, max_length=1000)[0]


@pytest.mark.parity
@trl_oracle
@pytest.mark.parametrize(
    ("name", "template"),
    [
        _slow("llama3.2", "llama3"),
        _slow("gemma", "gemma"),
        ("llama2", "llama3"),  # Other words spell the markers; the rule is the same.
        ("llama2", "gemma"),
    ],
)
@pytest.mark.parametrize("marked", [False, True], ids=["found", "generation"])
def test_messages_give_the_ids_and_assistant_masks_of_trl(assets, name, template, marked):
    """TRL puts `{% generation %}` into the template; ours is located without, or reads it."""
    tokenizer = with_template(assets, name, f"{template}_training" if marked else template)
    rows = [{"messages": chat} for chat in conversations(assets)[:16]]
    result = tokenized(rows, tokenizer, 300, assistant_only_loss=True)
    expected = trl_prepared(rows, tokenizer, assistant_only=True, max_length=300)
    assert (ids(result), labels_of(result)) == expected
    whole = tokenized(rows, tokenizer, 300)
    assert whole.labels is None
    assert ids(whole) == trl_prepared(rows, tokenizer, max_length=300)[0]
    pairs = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    both = tokenized(pairs, tokenizer, 2000, assistant_only_loss=True)
    options = {"assistant_only": True, "completion_only": True}
    assert labels_of(both) == trl_prepared(pairs, tokenizer, **options, max_length=2000)[1]


@pytest.mark.parametrize("name", ANSWERS)
def test_the_learned_tokens_are_the_assistants_characters(assets, name):
    tokenizer = real_tokenizer(assets, name)
    chats = conversations(assets)[:200]
    assert len(chats) == 200
    result = tokenized(
        [{"messages": chat} for chat in chats], tokenizer, 10**6, assistant_only_loss=True
    )
    for chat, row, labels in zip(chats, result.rows, result.labels, strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        turns = [match.span(1) for match in re.finditer(ANSWERS[name], text, re.DOTALL)]
        assert len(turns) == len(chat) // 2
        learned = [
            any(start < stop_ and stop > start_ for start_, stop_ in turns)
            for start, stop in encoded["offset_mapping"]
        ]
        assert row.tolist() == encoded["input_ids"]
        assert labels.tolist() == np.where(learned, row, IGNORE).tolist()
        # No token stands on both sides of an edge.
        edges = {edge for start, stop in encoded["offset_mapping"] for edge in (start, stop)}
        assert {edge for turn in turns for edge in turn} <= edges


def test_mistral_ids_are_those_its_owner_publishes(assets):
    golden = assets / "tokenizers" / "mistral_common_golden"
    messages = json.loads((golden / "no_tools__sample.json").read_text())["messages"]
    expected = json.loads((golden / "no_tools__tokens_v3.json").read_text())["tokens"]
    [row] = ids(tokenized([{"messages": messages}], real_tokenizer(assets, "mistral_v3")))
    assert row == expected


def test_a_template_that_renders_earlier_turns_otherwise_is_located(assets):
    """Mistral's writes the system message into the last question."""
    tokenizer = real_tokenizer(assets, "mistral_v3")
    chat = [{"role": "system", "content": "Be kind."}, *conversations(assets)[0]]
    result = tokenized([{"messages": chat}], tokenizer, assistant_only_loss=True)
    [row], [labels] = result.rows, result.labels
    text = tokenizer.decode(row[labels != IGNORE])
    assert text.count("</s>") == len(chat) // 2
    assert "Be kind." not in text
    assert "[INST]" not in text
    for message in chat[2::2]:
        assert message["content"].strip() in text


def test_thoughts_that_only_the_last_turn_has_are_located(assets):
    tokenizer = type(WORDS)(tokenizer_object=real_tokenizer(assets, "llama2").backend_tokenizer)
    path = assets / "chat_templates" / "llamacpp__Qwen-Qwen3-0.6B.jinja"
    tokenizer.chat_template = path.read_text()
    result = tokenized([{"messages": CHAT}], tokenizer, assistant_only_loss=True)
    [row], [labels] = result.rows, result.labels
    learned = tokenizer.decode(row[labels != IGNORE]).replace(" ", "")
    assert learned == "bc<|im_end|>\n<think>\n\n</think>\n\ne<|im_end|>\n"


def test_answers_are_learned_with_what_closes_them():
    result = tokenized([{"messages": CHAT}], assistant_only_loss=True)
    _, a, b, c, d, e = 0, 3, 4, 5, 6, 7
    assert ids(result) == [
        [0, USER, COLON, a, ASSISTANT, COLON, b, c, 1, USER, COLON, d, ASSISTANT, COLON, e, 1]
    ]
    ignored = [IGNORE]
    assert labels_of(result) == [[*ignored * 6, b, c, 1, *ignored * 5, e, 1]]
    assert result.learned == "the assistant's turns"


def test_a_conversation_that_the_assistant_opens():
    result = tokenized([{"messages": CHAT[1:]}], assistant_only_loss=True)
    assert [n for n in labels_of(result)[0] if n != IGNORE] == [4, 5, 1, 7, 1]


def test_an_empty_answer_teaches_to_stop():
    chat = [CHAT[0], {"role": "assistant", "content": ""}]
    result = tokenized([{"messages": chat}], assistant_only_loss=True)
    assert [n for n in labels_of(result)[0] if n != IGNORE] == [1]


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
def test_sharegpt_names_are_read(column, kind):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    roles = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    given, expected = (tokenized(kind([{column: chat}])) for chat in (turns, roles))
    assert ids(given) == ids(expected)


def test_filled_in_keys_and_parts_of_text_are_read():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}]
    message = {"role": None, "content": None, "from": "human", "value": parts, "tool_calls": None}
    rows = [{"messages": [message]}]
    assert ids(tokenized(rows)) == [[0, USER, COLON, 3, 4]]


def test_threads_give_equal_rows():
    rows = [{"messages": CHAT[: 2 + 2 * (n % 2)]} for n in range(50)]
    alone = tokenized(rows, assistant_only_loss=True)
    spread = tokenized(rows, assistant_only_loss=True, threads=3)
    assert (ids(alone), labels_of(alone)) == (ids(spread), labels_of(spread))


def test_text_comes_before_messages_unless_messages_are_asked_for():
    rows = [{"text": "a", "messages": CHAT}]
    assert ids(tokenized(rows)) == [[0, 3, 1]]
    assert len(tokenized(rows, assistant_only_loss=True).rows[0]) == 16


def test_prompts_of_both_kinds_may_be_mixed_and_keep_their_order():
    rows = [
        {"prompt": "a", "completion": " b"},
        {"prompt": CHAT[:1], "completion": CHAT[1:2]},
        {"prompt": "c", "completion": " d"},
    ]
    assert labels_of(tokenized(rows))[::2] == [[IGNORE, IGNORE, 4, 1], [IGNORE, IGNORE, 6, 1]]


def test_a_prompt_whose_tokens_change_is_reported():
    with pytest.warns(UserWarning, match="in 1 rows the tokens of the prompt alone"):
        result = tokenized([{"prompt": "a b", "completion": "x"}])
    assert labels_of(result) == [[IGNORE, IGNORE, 2, 1]]


def test_the_tokenizer_is_not_changed():
    before = state_of(WORDS)
    tokenized([{"messages": CHAT}], assistant_only_loss=True, threads=2)
    assert state_of(WORDS) == before


def broken(**change):
    return [{"messages": CHAT}, {"messages": [{**CHAT[0], **change}]}]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"messages": CHAT}, {"text": "a"}], {}, r"columns \['messages'\]; row 1 has \['text'\]"),
        ([{"messages": CHAT}, {"messages": None}], {}, r"`messages` must hold .* row 1 holds None"),
        ([{"messages": []}], {}, r"at least one message; the column `messages` of row 0"),
        ([{"messages": "a"}], {}, r"list of messages.*; row 0 holds str"),
        ([{"messages": ["a"]}], {}, r"message 0 of `messages` in row 0 is str"),
        (broken(content=None), {}, r"`content` that is text; message 0 of `messages` in row 1"),
        (broken(content=5), {}, r"must be text, .*; message 0 of `messages` in row 1 holds 5"),
        (broken(role=None), {}, r"must have a `role`; message 0 of `messages` in row 1"),
        (
            [{"messages": [{"from": "observation", "value": "a"}]}],
            {},
            r"must be one of \['assistant', .*; message 0 .* in row 0 is from 'observation'",
        ),
        (
            [{"prompt": "a", "completion": CHAT[1:2]}],
            {},
            r"both be text, or both lists of messages; row 0 holds str and list",
        ),
        ([{"prompt": "a", "completion": None}], {}, r"row 0 holds str and NoneType"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "a"}],
            {},
            r"columns \['prompt', 'completion'\]; row 1 has \['prompt'\]. Add `completion`",
        ),
        (
            [{"prompt": "a", "completion": "b"}],
            {"assistant_only_loss": True},
            r"`assistant_only_loss` needs rows of messages; `prompt` and `completion` of row 0",
        ),
        ([{"text": "a"}], {"assistant_only_loss": True}, r"needs rows of messages .*other rows"),
        (
            [{"messages": CHAT}],
            {"completion_only_loss": True},
            r"needs rows with the columns `prompt` and `completion`",
        ),
        (
            [{"messages": CHAT[:1]}],
            {"assistant_only_loss": True},
            r"all 1 rows are empty.*no turn of the assistant",
        ),
        (
            [{"prompt": "a b c", "completion": " d"}],
            {"max_length": 3},
            r"in their first 3 tokens\. The first token to learn .* is its 5th",
        ),
        ([{"messages": CHAT, "tools": "{"}], {}, r"`tools` must hold .*; row 0 holds '\{'"),
    ],
)
def test_refuses_rows_by_their_number(rows, options, message):
    with pytest.raises(ValueError, match=message):
        tokenized(rows, **options)


def test_a_template_that_refuses_messages_names_the_row(assets):
    rows = [{"messages": CHAT}, {"messages": CHAT[1:]}]
    with pytest.raises(ValueError, match=r"take every row; row 1: .*roles must alternate"):
        tokenized(rows, real_tokenizer(assets, "gemma"))


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ValueError, match=r"need a chat template; .*get_chat_template\(tokenizer"):
        tokenized([{"messages": CHAT}], make_tokenizer())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (  # A header that is no generation prompt.
            "{% for m in messages %}{{ m.role }} : {{ m.content }} </s> {% endfor %}",
            r"does not tell: it writes 'assistant : ' before an answer",
        ),
        (  # The answers stand in another order.
            "{% for m in messages | reverse %}{{ m.role }} : {{ m.content }} </s> {% endfor %}"
            "{% if add_generation_prompt %}assistant : {% endif %}",
            r"does not tell: for a question it writes",
        ),
    ],
)
def test_a_template_that_does_not_tell_turns_is_refused(template, message):
    tokenizer = make_tokenizer(words=("user", "assistant", ":"), chat_template=template)
    with pytest.raises(ValueError, match=message):
        tokenized([{"messages": CHAT}], tokenizer, assistant_only_loss=True)


def test_a_turn_that_cannot_be_located_is_refused():
    """This template shortens all answers but the last."""
    template = (
        "{% for m in messages %}{{ m.role }} : {% if loop.last %}{{ m.content }}{% else %}"
        "{{ m.content[:1] }}{% endif %} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    tokenizer = make_tokenizer(words=("user", "assistant", ":"), chat_template=template)
    with pytest.raises(ValueError, match=r"row 0: the assistant's turn in message 1 cannot be loc"):
        tokenized([{"messages": CHAT}], tokenizer, assistant_only_loss=True)


def test_templates_run_in_the_sandbox():
    tokenizer = make_tokenizer(chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match=r"row 0: SecurityError") as caught:
        tokenized([{"messages": CHAT}], tokenizer)
    assert isinstance(caught.value.__cause__.__cause__, jinja2.sandbox.SecurityError)
