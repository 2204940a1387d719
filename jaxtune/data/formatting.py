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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from jaxtune.data.bad_rows import BadRowError, BadRows, good_rows

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


class Formatter:
    """Calls the user's function; its kind is told once."""

    def __init__(self, function: Callable[[Any], Any], field: str) -> None:
        """Call nothing yet.

        Args:
          function: Of one of the kinds above.
          field: Where a dictionary that it returns holds the texts; not needed of a dictionary
            with one entry.
        """
        self._function = function
        self._field = field
        self._takes_batches: bool | None = None

    def texts(self, rows: Sequence[Any], first: int, bad: BadRows) -> list[tuple[int, str]]:
        """The texts that the function makes of some rows.

        Args:
          rows: Of the data set.
          first: Number of the first.
          bad: Takes rows for which it fails, returns something else or an empty text, or that do
            not tell what it takes.

        Returns:
          Pairs of a row's number and a text. Where the function makes of a batch fewer or more
          texts than it has rows, the number is the batch's first.
        """
        kept = good_rows(rows, first, bad, lambda row, _: row)
        while self._takes_batches is None and kept:
            number, row = kept[0]
            try:
                self._takes_batches = _takes_batches(self._function, row, number, self._field)
            except BadRowError as error:
                bad.note(number, error)
            if self._takes_batches is None:
                kept = kept[1:]  # It makes no text of this row in either reading.
        if self._takes_batches and kept:
            return [text for text in self._of_batch(kept, bad) if _is_full(text, bad)]
        made = []
        for number, row in kept:
            texts = self._of(dict(row), ("text", "list"), [number], bad)
            made += [text for text in texts if _is_full(text, bad)]
        return made

    def _of_batch(
        self, rows: list[tuple[int, Mapping[str, Any]]], bad: BadRows
    ) -> list[tuple[int, str]]:
        """Of a batch; where it fails and bad rows are left out, of its rows one by one."""
        numbers = [number for number, _ in rows]
        batch = _columns([row for _, row in rows])
        if bad.refuses or len(rows) == 1:
            return self._of(batch, ("list", "dict"), numbers, bad)
        trial = BadRows("", "skip")
        made = self._of(batch, ("list", "dict"), numbers, trial)
        return made if not trial.count else [t for row in rows for t in self._of_batch([row], bad)]

    def _of(
        self, argument: dict[str, Any], forms: tuple[str, str], numbers: list[int], bad: BadRows
    ) -> list[tuple[int, str]]:
        """Call the function on what these rows are."""
        answer = _ask(self._function, argument, self._field)
        if answer.texts is None or answer.form not in forms:
            first, last = numbers[0], numbers[-1]
            where = f"row {first}" if first == last else f"rows {first} to {last}"
            error = BadRowError(
                f"`formatting_func` {answer.report} for {where}. "
                f"{_WANTED.format(field=self._field)}"
            )
            error.__cause__ = answer.error
            bad.note(first, error)
            return []
        if len(answer.texts) != len(numbers):
            numbers = [numbers[0]] * len(answer.texts)
        return list(zip(numbers, answer.texts, strict=True))


def _is_full(made: tuple[int, str], bad: BadRows) -> bool:
    """Whether a text holds something; else its row is bad."""
    number, text = made
    if text.strip():
        return True
    bad.note(
        number,
        BadRowError(
            f"`formatting_func` must not return empty text; got {text!r:.20} for row {number}. "
            "An empty list leaves a row out."
        ),
    )
    return False


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The rows as a batch; None where a row lacks a column, as in `datasets`."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


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
    raise BadRowError(
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
    if hasattr(value, "column_names") and hasattr(value, "select_columns"):
        value = {name: list(value[name]) for name in value.column_names}  # a `datasets.Dataset`
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
