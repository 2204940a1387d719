"""Text rows to token ids: BOS once, EOS at the end, truncation reported."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedRows:
    """The training rows.

    Attributes:
      rows: Token ids of each row, int32.
      truncated: Rows that were cut.
      tokens_lost: Tokens cut away.
      eos_appended: Rows that did not end with EOS and got one.
    """

    rows: list[np.ndarray]
    truncated: int
    tokens_lost: int
    eos_appended: int


def tokenize_text(
    dataset: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    *,
    text_field: str,
    max_length: int,
) -> TokenizedRows:
    """Tokenise a text column as TRL does: EOS appended unless the row already ends with it.

    The tokenizer's own special tokens are added; a row whose text already spells the BOS token
    keeps one of the two. A row is cut at its end, after EOS was appended, as in TRL.

    Args:
      dataset: Rows with a text column.
      tokenizer: A transformers tokenizer; not changed.
      text_field: Name of the column.
      max_length: Longest row, tokens.

    Returns:
      The rows, and what was done to them.

    Raises:
      ValueError: No rows, a row without the column, or a column that is not text.
    """
    texts = [_text(row, number, text_field) for number, row in enumerate(dataset)]
    if not texts:
        raise ValueError("`train_dataset` must hold at least one row; got none.")
    encoded = _encode(tokenizer, texts)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows, truncated, lost, appended = [], 0, 0, 0
    for ids in encoded:
        complete, added = _with_specials(ids, bos, eos)
        appended += added
        if len(complete) > max_length:
            truncated += 1
            lost += len(complete) - max_length
            complete = complete[:max_length]
        rows.append(np.asarray(complete, np.int32))
    return TokenizedRows(rows=rows, truncated=truncated, tokens_lost=lost, eos_appended=appended)


def _text(row: Any, number: int, field: str) -> str:
    if not isinstance(row, Mapping) or field not in row:
        held = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(
            f"every row must have the text column `{field}` (dataset_text_field); row {number} "
            f"has {held}. Pass dataset_text_field=, or add the column."
        )
    text = row[field]
    if not isinstance(text, str):
        raise ValueError(
            f"the column `{field}` must hold text; row {number} holds {type(text).__name__}."
        )
    return text


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text; truncation and padding that the tokenizer was saved with survive.

    A call of a transformers tokenizer sets them anew on the object underneath. `verbose=False`:
    the rows are cut later, so its warning of long rows would mislead.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    truncation, padding = getattr(backend, "truncation", None), getattr(backend, "padding", None)
    try:
        return tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def _with_specials(
    ids: Sequence[int], bos: int | None, eos: int | None
) -> tuple[Sequence[int], bool]:
    """One BOS at most, EOS at the end; and whether EOS was added."""
    ids = list(ids)
    if bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    if eos is None or ids[-1:] == [eos]:
        return ids, False
    return [*ids, eos], True
