"""A data set to token ids: which column, BOS once, EOS at the end, truncation reported."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxtune.data.dataset import check_dataset, columns_of, row_batches
from jaxtune.data.formatting import formatted_texts
from jaxtune.data.rows import TokenizedRows, cut_rows
from jaxtune.data.token_columns import token_rows
from jaxtune.errors import NotBuiltYetError

# Fewer rows take less than a second or two.
_PROGRESS_ABOVE = 5000
# Texts that a thread takes at once: handing over each one alone costs a tenth of the time.
_TASK = 16


def tokenize_dataset(
    dataset: Any,
    tokenizer: Any,
    *,
    text_field: str,
    formatting_func: Callable[[Any], Any] | None = None,
    max_length: int,
    threads: int | None = None,
) -> TokenizedRows:
    """Tokenise a data set as TRL does; the kind of its rows is told by its columns.

    - `input_ids`: taken as they are, with `labels` and `attention_mask` where there are such.
    - `formatting_func`: its texts (`formatting.py` says how it is called).
    - else the column `text_field`.

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

    Returns:
      The rows, and what was done to them.

    Raises:
      TypeError: `dataset` is no data set.
      ValueError: No rows, a row without the column, values of a wrong type, a `formatting_func`
        that fails or does not return text, `formatting_func` beside `input_ids`, nothing to learn.
      NotBuiltYetError: A stream; rows of messages, or of prompt and completion, without a text.
    """
    for name, value in (("max_length", max_length), ("dataset_num_proc", threads)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1; got {value}.")
    check_dataset(dataset)
    if "input_ids" in columns_of(dataset):
        if formatting_func is not None:
            raise ValueError(
                "`formatting_func` must be None for rows that are tokens already; got one, and "
                "`train_dataset` has the column `input_ids`. Pass one of the two."
            )
        rows, labels = token_rows(dataset)
        return cut_rows(rows, labels, max_length=max_length)
    if formatting_func is None:
        texts = _column_texts(dataset, text_field)
    else:
        texts = formatted_texts(dataset, formatting_func, text_field)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows, appended = [], 0
    for ids in _encoded(texts, tokenizer, threads, len(dataset)):
        complete, added = _with_specials(ids, bos, eos)
        appended += added
        rows.append(np.asarray(complete, np.int32))
    return cut_rows(rows, max_length=max_length, eos_appended=appended)


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


def _missing_column(field: str, number: int, columns: Sequence[str]) -> Exception:
    rule = (
        f"every row must have the text column `{field}` (dataset_text_field); row {number} has "
        f"{sorted(columns)}."
    )
    chats = [name for name in ("messages", "conversations") if name in columns]
    if not chats and not {"prompt", "completion"} <= set(columns):
        return ValueError(f"{rule} Pass dataset_text_field= or formatting_func=, or add it.")
    kind, turns = (
        (f"`{chats[0]}`", f"row[{chats[0]!r}]")
        if chats
        else ("`prompt` and `completion`", "row['prompt'] + row['completion']")
    )
    return NotBuiltYetError(
        f"{rule} Rows of {kind} are not built yet. Render them, which trains on every token: "
        f"formatting_func=lambda row: tokenizer.apply_chat_template({turns}, tokenize=False)."
    )


def _encoded(
    texts: Iterator[tuple[int, list[str]]], tokenizer: Any, threads: int | None, total: int
) -> Iterator[list[int]]:
    """Token ids of each text, in order."""
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(
                total=total,
                desc="jaxtune: tokenising",
                unit="row",
                disable=total <= _PROGRESS_ABOVE,
            )
        )
        pool = None
        if threads is not None and getattr(tokenizer, "backend_tokenizer", None) is not None:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
        for rows, batch in texts:
            if batch:
                yield from _encode(tokenizer, batch, pool)
            bar.update(rows)


def _encode(tokenizer: Any, texts: list[str], pool: Executor | None) -> list[list[int]]:
    """Token ids of each text. `verbose=False`: rows are cut later, its warning would mislead.

    The tokenizer spreads the texts of one call over all cores by itself, and encodes the text of
    a call of one on the thread that calls, without Python's lock: so threads that pass one text at
    a time are as many as asked for.
    """
    call = functools.partial(
        tokenizer, truncation=False, padding=False, verbose=False, return_attention_mask=False
    )
    with _unlimited(tokenizer):
        if pool is None:
            return call(texts)["input_ids"]
        parts = [texts[start : start + _TASK] for start in range(0, len(texts), _TASK)]
        done = pool.map(lambda part: [call([text])["input_ids"][0] for text in part], parts)
        return [ids for part in done for ids in part]


@contextlib.contextmanager
def _unlimited(tokenizer: Any) -> Iterator[None]:
    """No truncation and no padding inside; what the tokenizer was saved with survives.

    A call of a transformers tokenizer sets them on the object underneath, which must not happen
    while another thread encodes. So they are set before, and the calls find nothing to set.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    special = backend.encode_special_tokens
    try:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
        backend.encode_special_tokens = special


def _with_specials(
    ids: Sequence[int], bos: int | None, eos: int | None
) -> tuple[Sequence[int], bool]:
    """One BOS at the start at most, EOS at the end; and whether EOS was added."""
    start = 0
    if bos is not None:
        while list(ids[start : start + 2]) == [bos, bos]:
            start += 1
    ids = ids[start:]
    if eos is None or (len(ids) and ids[-1] == eos):
        return ids, False
    return [*ids, eos], True
