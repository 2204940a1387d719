"""Rows of the data set to tokens, some at a time; the kind of the rows is told by their columns."""

import copy
import warnings
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from jaxtune.data.bad_rows import BadRowError, BadRows, row_names
from jaxtune.data.chat_rows import PAIR, ChatRows
from jaxtune.data.encoded import Encoded
from jaxtune.data.row_options import RowOptions
from jaxtune.data.texts import Texts
from jaxtune.data.token_columns import TokenColumns

CONVERSATIONS = ("messages", "conversations")
# What a processor makes of these is no text; learning the text alone would be another task.
VISION = ("image", "images", "pixel_values", "video", "videos", "audio", "audios")


class RowReader:
    """Tokenises rows as TRL does, and keeps count of those that it cannot.

    - `input_ids`: taken as they are, with `labels` and `attention_mask` where there are such.
    - `formatting_func`: its texts (`formatting.py` says how it is called).
    - `prompt` and `completion`: two texts, or two lists of messages.
    - the text column.
    - `messages` or `conversations`: rendered by the tokenizer's chat template. Taken before the
      text column where `assistant_only_loss` asks for messages.

    A text gets the tokenizer's own special tokens, and EOS unless it ends with it. If it spells
    BOS at its start (a rendered chat template), BOS still stands there once; decided row by row.
    """

    def __init__(self, columns: Sequence[str], tokenizer: Any, options: RowOptions) -> None:
        """Tell the kind of the rows.

        Args:
          columns: Of the data set.
          tokenizer: A transformers tokenizer; not changed.
          options: What decides the tokens.

        Raises:
          ValueError: The column is missing, images, or an option that these rows cannot serve.
          NotBuiltYetError: Rows that only TRL's own collator reads.
        """
        self.tokenizer = tokenizer
        self.options = options
        self._source = _source(columns, tokenizer, options)
        self._count_anew()

    def _count_anew(self) -> None:
        self.bad = BadRows("bad_rows", self.options.bad_rows)
        self.long = BadRows("long_rows", self.options.long_rows)

    def again(self) -> "RowReader":
        """The same reader for rows that were read and counted before; its own counts are others."""
        other = copy.copy(self)
        other._count_anew()
        return other

    @property
    def columns(self) -> Collection[str] | None:
        """The columns that are read; None: all."""
        return self._source.columns

    @property
    def values(self) -> str | None:
        """The format in which a table gives them; None: Python's own."""
        return self._source.values

    @property
    def learned(self) -> str:
        """What the labels name, in words."""
        return self._source.learned

    def read(self, rows: Sequence[Any], first: int, pool: Executor | None = None) -> Encoded:
        """Tokenise some rows.

        Args:
          rows: Of the data set.
          first: Number of the first.
          pool: From `tokenizer_threads`.

        Returns:
          The good ones; the others are noted.

        Raises:
          ValueError: Too many are bad, or the template is of no use for any row.
        """
        encoded = self._source.encode(rows, first, self.bad, pool)
        outside: set[int] = set()
        long: set[int] = set()
        limit, most = self.options.vocab_size, self.options.max_length
        for place, (number, ids) in enumerate(zip(encoded.numbers, encoded.rows, strict=True)):
            if limit is not None and len(ids) and not 0 <= ids.min() <= ids.max() < limit:
                outside.add(place)
                self.bad.note(number, _outside(ids, limit, number))
            elif len(ids) > most and self.options.long_rows != "cut":
                long.add(place)
                self.long.note(number, _too_long(len(ids), most, number))
        return encoded.without(outside | long)

    def check(self) -> None:
        """Raise where rows were noted that are to be refused, and warn of what prompts did."""
        self.bad.check()
        self.long.check()
        if isinstance(self._source, ChatRows) and self._source.parted:
            warnings.warn(
                f"in {self._source.parted} rows the tokens of the prompt alone are not those that "
                "the row starts with; what is learned starts where they part. End prompts at a "
                "token's end, for example with no space.",
                stacklevel=4,
            )
            self._source.parted = 0

    def skipped(self) -> tuple[str, ...]:
        """What was left out so far, in words."""
        return tuple(
            f"{found.count:,} {kind}, {row_names(found.numbers, found.count)}: {found.reasons[0]}"
            for found, kind in ((self.bad, "bad"), (self.long, "too long"))
            if found.count
        )


def _outside(ids: np.ndarray, limit: int, number: int) -> BadRowError:
    wrong = ids[(ids < 0) | (ids >= limit)]
    return BadRowError(
        f"token ids must be below the model's vocabulary of {limit}, and not negative; row "
        f"{number} holds {wrong[0]}. Use the tokenizer that belongs to the model."
    )


def _too_long(length: int, limit: int, number: int) -> BadRowError:
    return BadRowError(
        f"a row must have at most {limit} tokens, since long_rows is not 'cut'; row {number} has "
        f"{length}. Raise the limit (max_seq_length)."
    )


def _source(
    columns: Sequence[str], tokenizer: Any, options: RowOptions
) -> TokenColumns | ChatRows | Texts:
    """What reads rows of these columns."""
    seen = [name for name in VISION if name in columns]
    if seen:
        raise ValueError(
            f"rows must be text: images, video and sound cannot be learned, nor rows with them "
            f"packed; got the column `{seen[0]}`. To learn the text alone drop it, "
            f"dataset.remove_columns({seen})."
        )
    chat = chat_columns(columns, options.text_field, options.assistant_only_loss)
    if "input_ids" in columns or options.formatting_func is not None:
        chat = ()
    _check_loss_options(options, chat)
    if "input_ids" in columns:
        if options.formatting_func is not None:
            raise ValueError(
                "`formatting_func` must be None for rows that are tokens already; got one, and "
                "`train_dataset` has the column `input_ids`. Pass one of the two."
            )
        return TokenColumns(columns)
    if chat:
        completion_only = chat == PAIR and options.completion_only_loss is not False
        return ChatRows(tokenizer, chat, completion_only, options.assistant_only_loss)
    return Texts(columns, tokenizer, options.text_field, options.formatting_func)


def chat_columns(
    columns: Collection[str], text_field: str, prefer_messages: bool = False
) -> tuple[str, ...]:
    """The columns of a chat that rows are made of; empty: they are made of another.

    Args:
      columns: Of the data set.
      text_field: A text column, which comes before messages.
      prefer_messages: Messages come before a text column.

    Returns:
      `PAIR`, or the column of messages.
    """
    if set(PAIR) <= set(columns):
        return PAIR
    if text_field in columns and not prefer_messages:
        return ()
    return tuple(name for name in CONVERSATIONS if name in columns)[:1]


def _check_loss_options(options: RowOptions, chat: tuple[str, ...]) -> None:
    """Raise for an option about the loss that would be ignored."""
    if options.completion_only_loss and chat != PAIR:
        raise ValueError(
            "`completion_only_loss` needs rows with the columns `prompt` and `completion`, and no "
            "`formatting_func`; got other rows. Leave it out, or split the rows into the two."
        )
    if options.assistant_only_loss and not chat:
        raise ValueError(
            "`assistant_only_loss` needs rows of messages (`messages`, `conversations`, or a "
            "`prompt` and a `completion` of messages), and no `formatting_func`; got other rows. "
            "For rows of rendered text use train_on_responses_only(trainer)."
        )
