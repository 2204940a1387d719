"""Interim stand-in for the data layer's new interface."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxtune.data import collate, tokenize
from jaxtune.data.collate import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedRows:
    """Rows."""

    rows: list[np.ndarray]
    labels: list[np.ndarray] | None
    truncated: int
    tokens_lost: int
    eos_appended: int


def tokenize_dataset(
    dataset: Any,
    tokenizer: Any,
    *,
    text_field: str,
    formatting_func: Any = None,
    max_length: int,
    threads: int | None = None,
) -> TokenizedRows:
    """Tokenise."""
    del formatting_func, threads
    made = tokenize.tokenize_text(dataset, tokenizer, text_field=text_field, max_length=max_length)
    return TokenizedRows(labels=None, **vars(made))


def windows(rows: TokenizedRows, **options: Any) -> Iterator[Window]:
    """Windows."""
    return collate.windows(rows.rows, **options)
