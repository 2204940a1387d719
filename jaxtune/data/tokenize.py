"""A data set to token ids: which column, BOS once, EOS at the end, truncation reported."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from jaxtune.data.chat_rows import PAIR, chat_rows
from jaxtune.data.dataset import check_dataset, columns_of, row_batches
from jaxtune.data.encode import encode, progress_bar, tokenizer_threads
from jaxtune.data.formatting import formatted_texts
from jaxtune.data.rows import EVERY_TOKEN, TokenizedRows, cut_rows
from jaxtune.data.special_tokens import with_specials
from jaxtune.data.token_columns import token_rows

CONVERSATIONS = ("messages", "conversations")


def tokenize_dataset(
    dataset: Any,
    tokenizer: Any,
    *,
    text_field: str,
    formatting_func: Callable[[Any], Any] | None = None,
    max_length: int,
    threads: int | None = None,
    completion_only_loss: bool | None = None,
    assistant_only_loss: bool = False,
) -> TokenizedRows:
    """Tokenise a data set as TRL does; the kind of its rows is told by its columns.

    - `input_ids`: taken as they are, with `labels` and `attention_mask` where there are such.
    - `formatting_func`: its texts (`formatting.py` says how it is called).
    - `prompt` and `completion`: two texts, or two lists of messages.
    - the column `text_field`.
    - `messages` or `conversations`: rendered by the tokenizer's chat template. Taken before the
      text column where `assistant_only_loss` asks for messages.

    A text gets the tokenizer's own special tokens, and EOS unless it ends with it. If it spells
    BOS at its start (a rendered chat template), BOS still stands there once; decided row by row.
    A row is cut at its end, after EOS was appended, and rows without a label are left out, as in
    TRL. A progress bar shows where there are more than 5,000 rows.

    Args:
      dataset: A `datasets.Dataset` or a list of mappings.
      tokenizer: A transformers tokenizer; not changed.
      text_field: Name of the text column.
      formatting_func: Makes the text of a row, or the texts of a batch.
      max_length: Longest row, tokens.
      threads: Tokenizer threads; None leaves it to the tokenizer. Nothing is forked. A tokenizer
        written in Python cannot run on several and runs on one.
      completion_only_loss: Learn completions, not prompts; None: where rows have the two columns.
      assistant_only_loss: Learn what the assistant wrote in rows of messages.

    Returns:
      The rows, and what was done to them.

    Raises:
      TypeError: `dataset` is no data set.
      ValueError: No rows, a row without the column, values of a wrong type, a `formatting_func`
        that fails or does not return text, `formatting_func` beside `input_ids`, an option about
        the loss that these rows cannot serve, messages that the tokenizer's chat template
        refuses, nothing to learn.
      NotBuiltYetError: A stream.
    """
    for name, value in (("max_length", max_length), ("dataset_num_proc", threads)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    check_dataset(dataset)
    columns = columns_of(dataset)
    chat = chat_columns(columns, text_field, assistant_only_loss)
    if "input_ids" in columns or formatting_func is not None:
        chat = ()
    _check_loss_options(completion_only_loss, assistant_only_loss, chat)
    if "input_ids" in columns:
        if formatting_func is not None:
            raise ValueError(
                "`formatting_func` must be None for rows that are tokens already; got one, and "
                "`train_dataset` has the column `input_ids`. Pass one of the two."
            )
        rows, labels = token_rows(dataset)
        learned = EVERY_TOKEN if labels is None else "what the column `labels` names"
        return cut_rows(rows, labels, max_length=max_length, learned=learned)
    if chat:
        made = chat_rows(
            dataset,
            tokenizer,
            chat,
            completion_only=chat == PAIR and completion_only_loss is not False,
            assistant_only=assistant_only_loss,
            threads=threads,
        )
        return cut_rows(**vars(made), max_length=max_length)
    if formatting_func is None:
        texts = _column_texts(dataset, text_field)
    else:
        texts = formatted_texts(dataset, formatting_func, text_field)
    return cut_rows(**_text_rows(texts, tokenizer, threads, len(dataset)), max_length=max_length)


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


def _check_loss_options(
    completion_only: bool | None, assistant_only: bool, chat: tuple[str, ...]
) -> None:
    """Raise for an option about the loss that would be ignored."""
    if completion_only and chat != PAIR:
        raise ValueError(
            "`completion_only_loss` needs rows with the columns `prompt` and `completion`, and no "
            "`formatting_func`; got other rows. Leave it out, or split the rows into the two."
        )
    if assistant_only and not chat:
        raise ValueError(
            "`assistant_only_loss` needs rows of messages (`messages`, `conversations`, or a "
            "`prompt` and a `completion` of messages), and no `formatting_func`; got other rows. "
            "For rows of rendered text use train_on_responses_only(trainer)."
        )


def _text_rows(
    texts: Iterator[tuple[int, list[str]]], tokenizer: Any, threads: int | None, total: int
) -> dict[str, Any]:
    """Ids of each text with its BOS and EOS, and how often EOS was added."""
    rows, appended = [], 0
    with tokenizer_threads(tokenizer, threads) as pool, progress_bar(total) as bar:
        for count, batch in texts:
            for ids in encode(tokenizer, batch, pool)["input_ids"] if batch else ():
                complete, added = with_specials(ids, tokenizer)
                appended += added
                rows.append(np.asarray(complete, np.int32))
            bar.update(count)
    return {"rows": rows, "eos_appended": appended}


def _column_texts(dataset: Any, field: str) -> Iterator[tuple[int, list[str]]]:
    """Rows read and their texts, a batch at a time."""
    columns = columns_of(dataset)
    if field not in columns:
        raise _missing_column(field, 0, columns)
    for start, rows in row_batches(dataset, [field]):
        for number, row in enumerate(rows, start):
            if field not in row:
                raise _missing_column(field, number, list(row))
            if not isinstance(row[field], str):
                raise ValueError(
                    f"the column `{field}` must hold text; row {number} holds "
                    f"{type(row[field]).__name__}."
                )
        yield len(rows), [row[field] for row in rows]


def _missing_column(field: str, number: int, columns: Sequence[str]) -> ValueError:
    return ValueError(
        f"every row must have the text column `{field}` (dataset_text_field); row {number} has "
        f"{sorted(columns)}. Pass dataset_text_field= or formatting_func=, or add it. Without it, "
        "`messages`, `conversations` or `prompt` and `completion` are read."
    )
