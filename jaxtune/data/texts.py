"""Rows of text: of a column, or as the user's function makes them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from jaxtune.data.bad_rows import BadRowError, BadRows, good_rows
from jaxtune.data.encode import encode
from jaxtune.data.encoded import Encoded
from jaxtune.data.formatting import Formatter
from jaxtune.data.rows import EVERY_TOKEN
from jaxtune.data.special_tokens import with_specials


class Texts:
    """Texts to tokens, with BOS once and EOS at the end.

    Attributes:
      columns: Those that are read; None: all.
      values: None: Python's own.
      learned: What the labels name, in words.
    """

    values: str | None = None
    learned: str = EVERY_TOKEN

    def __init__(
        self,
        columns: Sequence[str],
        tokenizer: Any,
        field: str,
        formatting_func: Callable[[Any], Any] | None = None,
    ) -> None:
        """Look at the columns.

        Args:
          columns: Of the data set.
          tokenizer: A transformers tokenizer; not changed.
          field: Name of the text column.
          formatting_func: Makes the texts; None: they stand in the column.

        Raises:
          ValueError: There is no such column.
        """
        if formatting_func is None and field not in columns:
            raise _missing_column(field, 0, columns)
        self.columns: Collection[str] | None = [field] if formatting_func is None else None
        self._tokenizer = tokenizer
        self._field = field
        self._formatter = None if formatting_func is None else Formatter(formatting_func, field)

    def encode(
        self,
        rows: Sequence[Any],
        first: int,
        bad: BadRows,
        pool: Executor | None = None,
    ) -> Encoded:
        """Ids of some rows.

        Args:
          rows: Of the data set.
          first: Number of the first.
          bad: Takes those without text.
          pool: From `tokenizer_threads`.

        Returns:
          A row for each text.
        """
        if self._formatter is None:
            texts = good_rows(rows, first, bad, self._text)
        else:
            texts = self._formatter.texts(rows, first, bad)
        if not texts or bad.refused:
            return Encoded()
        numbers, ids, appended = [], [], 0
        encoded = encode(self._tokenizer, [text for _, text in texts], pool)["input_ids"]
        for (number, _), row in zip(texts, encoded, strict=True):
            complete, added = with_specials(row, self._tokenizer)
            appended += added
            numbers.append(number)
            ids.append(np.asarray(complete, np.int32))
        return Encoded(numbers=numbers, rows=ids, eos_appended=appended)

    def _text(self, row: Mapping[str, Any], number: int) -> str:
        if self._field not in row:
            raise _missing_column(self._field, number, list(row))
        text = row[self._field]
        if not isinstance(text, str):
            raise BadRowError(
                f"the column `{self._field}` must hold text; row {number} holds "
                f"{type(text).__name__}."
            )
        if not text.strip():
            raise BadRowError(
                f"the column `{self._field}` must hold text that is not empty; row {number} holds "
                f"{text!r:.20}."
            )
        return text


def _missing_column(field: str, number: int, columns: Sequence[str]) -> BadRowError:
    return BadRowError(
        f"every row must have the text column `{field}` (dataset_text_field); row {number} has "
        f"{sorted(columns)}. Pass dataset_text_field= or formatting_func=, or add it. Without it, "
        "`messages`, `conversations` or `prompt` and `completion` are read."
    )
