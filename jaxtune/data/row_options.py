"""What decides how the rows of a data set become tokens."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtune.config import BAD_ROWS, LONG_ROWS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How rows are read; the same options make the same rows.

    Attributes:
      text_field: Name of the text column.
      formatting_func: Makes the text of a row, or the texts of a batch.
      max_length: Longest row, tokens.
      threads: Tokenizer threads; None leaves it to the tokenizer. Nothing is forked. A tokenizer
        written in Python cannot run on several and runs on one.
      completion_only_loss: Learn completions, not prompts; None: where rows have the two columns.
      assistant_only_loss: Learn what the assistant wrote in rows of messages.
      vocab_size: Of the model; ids beyond it make a row bad. None: they are not looked at.
      bad_rows: "refuse" or "skip" rows that cannot be learned: a column is missing, holds None or
        something else, or empty text; messages without a role, or that the template refuses; ids
        outside the vocabulary.
      long_rows: "cut" rows that are too long at their end, "refuse" or "skip" them.
    """

    text_field: str = "text"
    formatting_func: Callable[[Any], Any] | None = None
    max_length: int
    threads: int | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    vocab_size: int | None = None
    bad_rows: str = "refuse"
    long_rows: str = "cut"

    def __post_init__(self) -> None:
        """Check ranges and names."""
        for name, value in (("max_length", self.max_length), ("dataset_num_proc", self.threads)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        for name, value, known in (
            ("bad_rows", self.bad_rows, BAD_ROWS),
            ("long_rows", self.long_rows, LONG_ROWS),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {known}; got {value!r}.")
