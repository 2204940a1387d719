"""A data set to token ids: read in batches, each tokenised at once, what was done counted."""

from typing import Any

from jaxtune.data.dataset import check_dataset, columns_of, row_batches
from jaxtune.data.encode import progress_bar, tokenizer_threads
from jaxtune.data.encoded import Encoded
from jaxtune.data.row_options import RowOptions
from jaxtune.data.row_reader import RowReader
from jaxtune.data.rows import TokenizedRows, check_some_left, cut_rows
from jaxtune.data.sources import opened
from jaxtune.data.token_cache import cache_file, read_rows, write_rows


def tokenize_dataset(dataset: Any, tokenizer: Any, options: RowOptions) -> TokenizedRows:
    """Tokenise a data set as TRL does; `RowReader` tells the kinds of rows.

    A row is cut at its end, after EOS was appended, and rows without a label are left out, as in
    TRL. A progress bar shows where there are more than 5,000 rows. The rows of a data set that
    lies in files are kept (`token_cache.py`) and read again.

    Args:
      dataset: A `datasets.Dataset`, a list of mappings, or the path of a file (`sources.py`).
      tokenizer: A transformers tokenizer; not changed.
      options: What decides the tokens.

    Returns:
      The rows, and what was done to them.

    Raises:
      TypeError: `dataset` is no data set.
      ValueError: No rows, bad rows, a `formatting_func` beside `input_ids`, an option about the
        loss that these rows cannot serve, or nothing to learn.
    """
    dataset = opened(dataset)
    check_dataset(dataset)
    file = cache_file(dataset, tokenizer, options)
    kept = None if file is None else read_rows(file)
    if kept is None:
        kept = _tokenized(dataset, tokenizer, options)
        if file is not None:
            write_rows(file, kept)
    return kept


def _tokenized(dataset: Any, tokenizer: Any, options: RowOptions) -> TokenizedRows:
    reader = RowReader(columns_of(dataset), tokenizer, options)
    parts = []
    with (
        tokenizer_threads(tokenizer, options.threads) as pool,
        progress_bar(len(dataset)) as bar,
    ):
        for first, rows in row_batches(dataset, reader.columns, reader.values):
            parts.append(reader.read(rows, first, pool))
            bar.update(len(rows))
    reader.check()
    encoded = joined(parts)
    cut = cut_rows(encoded, options.max_length, learned=reader.learned, skipped=reader.skipped())
    check_some_left(cut, encoded, options.max_length)
    return cut


def joined(parts: list[Encoded]) -> Encoded:
    """The rows of all parts, in order."""
    labelled = any(part.labels for part in parts)
    return Encoded(
        numbers=[number for part in parts for number in part.numbers],
        rows=[row for part in parts for row in part.rows],
        labels=[row for part in parts for row in part.labels or ()] if labelled else None,
        eos_appended=sum(part.eos_appended for part in parts),
    )
