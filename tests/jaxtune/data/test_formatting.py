"""`formatting_func`: the forms that scripts use, told apart by as few calls as possible."""

import copy

import datasets
import jinja2
import pytest

from tests.jaxtune.data.test_tokenize import ids, tokenized, trl_dataset, trl_oracle
from tests.jaxtune.data.words import WORDS, make_tokenizer

COLUMNS = {"question": ["a b", "c", "d e f"], "answer": ["g", "h a", ""]}
WANTED = ["a b . g", "c . h a", "d e f . "]
ALPACA = {"instruction": ["a", "b"], "input": ["", "c"], "output": ["d", "e f"]}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(words=["."])


def to_rows(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def ids_of(texts):
    words = [*WORDS, "."]
    return [[0, *(words.index(word) for word in text.split()), 1] for text in texts]


def one_text(row):
    return f"{row['question']} . {row['answer']}"


def one_list(row):
    return [f"{row['question']} . {row['answer']}"]


def batch_list(batch):
    return [f"{q} . {a}" for q, a in zip(batch["question"], batch["answer"], strict=False)]


def batch_by_index(batch):
    return [f"{batch['question'][i]} . {batch['answer'][i]}" for i in range(len(batch["question"]))]


def page_example(examples):
    """The example of the SFTTrainer usage page, in its form."""
    texts = []
    for question, answer in zip(examples["question"], examples["answer"], strict=False):
        texts.append(f"{question} . {answer}")
    return {"text": texts}


def mapped_row(row):
    """As one writes it for `dataset.map`."""
    return {"text": f"{row['question']} . {row['answer']}"}


FORMS = [one_text, one_list, batch_list, batch_by_index, page_example, mapped_row]


class Counted:
    """A function, and what it was called with."""

    def __init__(self, function):
        self.function, self.calls = function, []

    def __call__(self, argument):
        self.calls.append(argument)
        return self.function(argument)


@pytest.mark.parity
@trl_oracle
def test_one_text_a_row_gives_the_rows_of_trl(tokenizer):
    theirs = trl_dataset(COLUMNS, tokenizer, 100, one_text)
    result = tokenized(to_rows(COLUMNS), tokenizer, formatting_func=one_text)
    assert ids(result) == list(theirs["input_ids"]) == ids_of(WANTED)


@pytest.mark.parametrize("as_table", [True, False], ids=["table", "list"])
@pytest.mark.parametrize("count", [3, 2, 1])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tokenizer, form, count, as_table):
    columns = {name: values[:count] for name, values in COLUMNS.items()}
    dataset = datasets.Dataset.from_dict(columns) if as_table else to_rows(columns)
    result = tokenized(dataset, tokenizer, formatting_func=form)
    assert ids(result) == ids_of(WANTED[:count])


@pytest.mark.parametrize(
    ("form", "first", "later"),
    [
        (one_text, 1, 2500),
        (mapped_row, 1, 2500),
        (one_list, 2, 2500),
        (batch_list, 2, 3),
        (batch_by_index, 2, 3),
        (page_example, 1, 3),
    ],
)
def test_functions_are_called_rarely(tokenizer, form, first, later):
    """At most two calls to tell the form; then once a row, or once a thousand rows."""
    counted = Counted(form)
    dataset = [{"question": "a", "answer": "b"}] * 2500
    assert len(tokenized(dataset, tokenizer, formatting_func=counted).rows) == 2500
    assert len(counted.calls) == first + later


def test_each_of_a_rows_texts_becomes_a_row(tokenizer):
    """Two texts for the row: two copies would not tell, so three are asked."""
    counted = Counted(lambda row: [row["question"], row["answer"]])
    result = tokenized(to_rows(COLUMNS)[:2], tokenizer, formatting_func=counted)
    assert ids(result) == ids_of(["a b", "g", "c", "h a"])
    assert len(counted.calls[1]["question"]) == 3


def test_a_row_may_give_no_text(tokenizer):
    def function(row):
        return [row["question"]] if row["answer"] else []

    rows = [{"question": "c", "answer": ""}, *to_rows(COLUMNS)]
    assert ids(tokenized(rows, tokenizer, formatting_func=function)) == ids_of(["a b", "c"])


def test_a_batch_may_leave_rows_out(tokenizer):
    def function(batch):
        pairs = zip(batch["question"], batch["answer"], strict=True)
        return {"text": [question for question, answer in pairs if answer]}

    result = tokenized(to_rows(COLUMNS), tokenizer, formatting_func=function)
    assert ids(result) == ids_of(["a b", "c"])


def test_a_row_that_gives_nothing_in_either_reading_does_not_tell(tokenizer):
    """The next one does, else batches were taken for rows, and characters for texts."""

    def function(batch):
        pairs = zip(batch["question"], batch["answer"], strict=False)
        return [question for question, answer in pairs if answer]

    rows = [{"question": "h", "answer": ""}, *to_rows(COLUMNS)]
    counted = Counted(function)
    assert ids(tokenized(rows, tokenizer, formatting_func=counted)) == ids_of(["a b", "c"])
    assert counted.calls[-1]["question"] == COLUMNS["question"]


def test_an_empty_column_does_not_mislead(tokenizer):
    """`zip` over the characters of an empty input makes no text of the first row."""

    def alpaca(batch):
        columns = (batch["instruction"], batch["input"], batch["output"])
        return [" ".join(texts) for texts in zip(*columns, strict=False)]

    result = tokenized(to_rows(ALPACA), tokenizer, formatting_func=alpaca)
    assert ids(result) == ids_of(["a d", "b c e f"])


CHATS = {
    "conversations": [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d e"}],
    ]
}


TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
LENIENT = jinja2.Environment().from_string(TEMPLATE)
STRICT = jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(TEMPLATE)


def templated(template):
    """The forms in which chats are rendered, row by row or in batches."""
    return {
        "text": lambda row: template.render(messages=row["conversations"]),
        "list": lambda b: [template.render(messages=m) for m in b["conversations"]],
        "dict": lambda b: {"text": [template.render(messages=m) for m in b["conversations"]]},
    }


@pytest.mark.parametrize("form", ["text", "list", "dict"])
@pytest.mark.parametrize("template", [LENIENT, STRICT], ids=["lenient", "strict"])
def test_chats_are_rendered_row_by_row_or_in_batches(tokenizer, form, template):
    """Called on one message, as a function of batches does on a row, a lenient template gives a
    text too; a strict one raises jinja's own error."""
    function = templated(template)[form]
    if (form, template) == ("list", LENIENT):
        assert len(function(to_rows(CHATS)[0])) == 2
    if (form, template) == ("list", STRICT):
        with pytest.raises(jinja2.TemplateError):
            function(to_rows(CHATS)[0])
    result = tokenized(to_rows(CHATS), tokenizer, formatting_func=function)
    assert ids(result) == ids_of(["a b", "c d e"])


@pytest.mark.parametrize("of_batch", [True, False], ids=["batch", "row"])
@pytest.mark.parametrize("as_table", [True, False], ids=["table", "list"])
def test_a_function_that_changes_its_row_is_asked_with_copies(tokenizer, of_batch, as_table):
    """The answers of the calls that tell its form are thrown away, what they change as well."""

    def insert(messages):
        messages.insert(0, {"role": "system", "content": "h"})
        return " ".join(message["content"] for message in messages)

    functions = {
        True: lambda batch: [insert(messages) for messages in batch["conversations"]],
        False: lambda row: insert(row["conversations"]),
    }
    dataset = datasets.Dataset.from_dict(CHATS) if as_table else copy.deepcopy(to_rows(CHATS))
    result = tokenized(dataset, tokenizer, formatting_func=functions[of_batch])
    assert ids(result) == ids_of(["h a b", "h c d e"])


def test_turns_of_a_row_become_rows(tokenizer):
    """It fails on a batch, where a turn is a list."""
    rows = [{"turns": ["a", "b", "c"]}, {"turns": ["d"]}]
    result = tokenized(
        rows, tokenizer, formatting_func=lambda row: [turn + " h" for turn in row["turns"]]
    )
    assert ids(result) == ids_of(["a h", "b h", "c h", "d h"])


@pytest.mark.parametrize("first", [[], ["c"]], ids=["no turns", "one turn"])
def test_what_fits_a_row_and_a_batch_is_refused(tokenizer, first):
    rows = [{"turns": first}, {"turns": ["d"]}]
    with pytest.raises(ValueError, match=r"what it takes cannot be told.*One string means a row"):
        tokenized(rows, tokenizer, formatting_func=lambda row: [f"{t}" for t in row["turns"]])


def test_a_dictionary_settles_what_fits_both(tokenizer):
    rows = [{"turns": ["c", "d"]}, {"turns": ["e"]}]
    result = tokenized(
        rows, tokenizer, formatting_func=lambda b: {"text": [" ".join(t) for t in b["turns"]]}
    )
    assert ids(result) == ids_of(["c d", "e"])


def test_the_entry_of_a_dictionary_is_the_text_field_or_the_only_one(tokenizer):
    rows = to_rows(COLUMNS)

    def function(batch):
        return {"other": [1] * len(batch["question"]), "story": batch["question"]}

    result = tokenized(rows, tokenizer, text_field="story", formatting_func=function)
    assert ids(result) == ids_of(COLUMNS["question"])
    only = tokenized(rows, tokenizer, formatting_func=lambda b: {"x": b["question"]})
    assert ids(only) == ids_of(COLUMNS["question"])


def test_missing_columns_of_a_batch_are_none(tokenizer):
    def function(batch):
        pairs = zip(batch["question"], batch["answer"], strict=False)
        return [f"{question} {answer or ''}" for question, answer in pairs]

    rows = [{"question": "a", "answer": "b"}, {"question": "c"}]
    assert ids(tokenized(rows, tokenizer, formatting_func=function)) == ids_of(["a b", "c"])


def fails_later(row):
    return row["question"] + {"c": None}.get(row["question"], "")


@pytest.mark.parametrize(
    ("function", "message", "cause"),
    [
        (
            lambda row: row["text"],
            r"raised KeyError: 'text' for row 0, and raised KeyError: 'text' for a batch of 2",
            KeyError,
        ),
        (lambda _: None, r"returned None for row 0, and returned None for a batch", None),
        (lambda _: 5, r"returned int for row 0, .*It must return, for a row, one string", None),
        (lambda _: [1, "a"], r"returned a list of int and str for row 0", None),
        (lambda _: {"a": [], "b": 1}, r"returned a dictionary \{'a': .* for row 0", None),
        (lambda _: {"text": [1]}, r"a dictionary \{'text': a list of int\} for row 0", None),
        (
            lambda argument: ["a"] * (5 if isinstance(argument["question"], list) else 3),
            r"returned 3 strings for row 0, and returned 5 strings for a batch of 2 copies of it: "
            r"what it takes cannot be told.*\{'text': list of strings\}",
            None,
        ),
        (fails_later, r"raised TypeError: .* for row 1\. It must return, for a row,", TypeError),
        (
            lambda row: row["question"] if row["question"] != "c" else 5,
            r"returned int for row 1\. It must return",
            None,
        ),
        (
            lambda batch: {"text": [q for q in batch["question"] if q.index("a") >= 0]},
            r"raised ValueError: substring not found for row",
            ValueError,
        ),
    ],
    ids=range(10),
)
def test_errors_name_the_row_what_came_and_what_is_wanted(tokenizer, function, message, cause):
    with pytest.raises(ValueError, match=message) as caught:
        tokenized(to_rows(COLUMNS), tokenizer, formatting_func=function)
    assert isinstance(caught.value.__cause__, cause or type(None))


def test_a_batch_that_fails_later_names_its_rows(tokenizer):
    def function(batch):
        if len(batch["question"]) == 200:
            raise ValueError("bad rows")
        return {"text": list(batch["question"])}

    with pytest.raises(ValueError, match=r"raised ValueError: bad rows for rows 1000 to 1199\. It"):
        tokenized([{"question": "a"}] * 1200, tokenizer, formatting_func=function)


def test_a_batch_that_becomes_one_string_is_refused(tokenizer):
    def function(batch):
        return {"text": "a" if len(batch["question"]) == 3 else list(batch["question"])}

    with pytest.raises(ValueError, match=r"returned one string for rows 0 to 2\."):
        tokenized([{"question": "a"}] * 3, tokenizer, formatting_func=function)


def test_other_failures_are_the_functions_own(tokenizer):
    def function(_):
        raise ConnectionError("down")

    with pytest.raises(ConnectionError, match="down"):
        tokenized(to_rows(COLUMNS), tokenizer, formatting_func=function)


def test_a_function_that_makes_nothing_leaves_nothing_to_learn(tokenizer):
    with pytest.raises(ValueError, match=r"at least one row must have a label to learn; all 0"):
        tokenized(to_rows(COLUMNS), tokenizer, formatting_func=lambda _: [])
