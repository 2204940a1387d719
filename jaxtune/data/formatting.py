"""`formatting_func`: what the user's function takes, told from what it answers.

Functions of three kinds are in use: of a row, to a text (TRL) or to a list of texts; and of a
batch, a dictionary of lists, to a list of texts or a dictionary that holds one (Unsloth, older
TRL). The rule, by the first row; the answers of these first calls are thrown away:

1. It is called on the row. A text: it takes rows. A dictionary with a list of texts: batches.
2. Anything else, a failure too: it is called on a batch of two copies of the row (three, where
   it made two texts of the row). As many texts back as copies: it takes batches. A list of texts
   for the row, and a failure, no texts or as many as for the row now: it takes rows.
3. Neither, or both make sense: an error that says what came back. No text in either case: the
   next row is asked.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2

from jaxtune.data.dataset import row_batches

# What a function raises where it meets rows that it was not made for, a list where it wants a
# text, or a chat template that refuses the messages. Anything else is not ours to explain.
_FAILURES = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    jinja2.TemplateError,
)
_WANTED = (
    "It must return, for a row, one string or a list of strings; or, for a batch (a dictionary of "
    "lists), a list of strings or {{{field!r}: list of strings}}."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Answer:
    """What the function gave back.

    Attributes:
      texts: The texts; None: it failed, or gave back something else.
      form: "text", "list" or "dict" (with a list).
      report: What happened, in words.
      error: What it raised.
    """

    texts: list[str] | None = None
    form: str = ""
    report: str = ""
    error: Exception | None = None


def formatted_texts(
    dataset: Any, formatting_func: Callable[[Any], Any], text_field: str
) -> Iterator[tuple[int, list[str]]]:
    """The texts that the user's function makes of the rows.

    Args:
      dataset: One that `check_dataset` let pass.
      formatting_func: Of one of the kinds above.
      text_field: Where a dictionary that it returns holds the texts; not needed of a dictionary
        with one entry.

    Yields:
      Rows read and their texts, a batch at a time.

    Raises:
      ValueError: The function failed, returned something else, or its kind cannot be told.
    """
    takes_batches = None
    for start, rows in row_batches(dataset):
        number = 0
        while takes_batches is None and number < len(rows):
            takes_batches = _takes_batches(
                formatting_func, rows[number], start + number, text_field
            )
            number += takes_batches is None  # It makes no text of this row in either reading.
        rest = rows[number:]
        if not rest:
            yield len(rows), []
        elif takes_batches:
            answer = _ask(formatting_func, _columns(rest), text_field)
            where = f"rows {start + number} to {start + len(rows) - 1}"
            yield len(rows), _checked(answer, ("list", "dict"), where, text_field)
        else:
            made = []
            for place, row in enumerate(rest, start + number):
                answer = _ask(formatting_func, dict(row), text_field)
                made += _checked(answer, ("text", "list"), f"row {place}", text_field)
            yield len(rows), made


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The rows as a batch; None where a row lacks a column, as in `datasets`."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _checked(answer: _Answer, forms: tuple[str, str], where: str, field: str) -> list[str]:
    if answer.texts is None or answer.form not in forms:
        raise ValueError(
            f"`formatting_func` {answer.report} for {where}. {_WANTED.format(field=field)}"
        ) from answer.error
    return answer.texts


def _takes_batches(
    function: Callable[[Any], Any], row: Mapping[str, Any], number: int, field: str
) -> bool | None:
    """The rule above for one row; None: this row does not tell.

    The function may change what it is given, so it is given copies.
    """
    alone = _ask(function, copy.deepcopy(dict(row)), field)
    if alone.form in ("text", "dict"):
        return alone.form == "dict"
    copies = 3 if alone.texts is not None and len(alone.texts) == 2 else 2
    batch = _columns([copy.deepcopy(dict(row)) for _ in range(copies)])
    together = _ask(function, batch, field)
    made = together.texts if together.form in ("list", "dict") else None
    if made is not None and len(made) == copies and not _fits_a_row(row, alone.texts, made[0]):
        return True
    if alone.texts is not None and (made is None or len(made) == len(alone.texts)):
        return None if made == alone.texts == [] else False
    raise ValueError(
        f"`formatting_func` {alone.report} for row {number}, and {together.report} for a batch of "
        f"{copies} copies of it: what it takes cannot be told. {_WANTED.format(field=field)} One "
        "string means a row, a dictionary means a batch."
    ) from alone.error


def _fits_a_row(row: Mapping[str, Any], texts: list[str] | None, of_batch: str) -> bool:
    """True if the texts for the row may be meant: one for each entry of one of its lists.

    A function of rows that runs over a list of messages fails on a batch, or prints the list.
    """
    return texts is not None and any(
        len(value) == len(texts)
        and (not all(isinstance(v, Mapping) for v in value) or str(value) in of_batch)
        for value in row.values()
        if isinstance(value, list | tuple)
    )


def _ask(function: Callable[[Any], Any], argument: dict[str, Any], field: str) -> _Answer:
    """Call the function, and look at what comes back."""
    try:
        value = function(argument)
    except _FAILURES as error:
        return _Answer(report=f"raised {type(error).__name__}: {error!s:.200}", error=error)
    whole, form = value, "list"
    if isinstance(value, Mapping):
        value = next(iter(value.values())) if len(value) == 1 else value.get(field)
        form = "dict"
    if isinstance(value, str):
        return _Answer(texts=[value], form="text", report="returned one string")
    if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
        return _Answer(texts=list(value), form=form, report=f"returned {len(value)} strings")
    return _Answer(report=f"returned {_described(whole)}")


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{name!r}: {_described(held)}" for name, held in value.items())
        return f"a dictionary {{{inside}}}"
    if isinstance(value, list | tuple):
        kinds = sorted({type(entry).__name__ for entry in value})
        return f"a {type(value).__name__} of {' and '.join(kinds)}"
    return "None" if value is None else type(value).__name__
