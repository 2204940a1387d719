"""A stream of rows, tokenised as it is read: a chunk is in memory, and the one after it."""

import copy
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

from jaxtune.data.dataset import BATCH
from jaxtune.data.encode import tokenizer_threads
from jaxtune.data.row_options import RowOptions
from jaxtune.data.row_reader import RowReader
from jaxtune.data.rows import TokenizedRows, cut_rows

Item = TypeVar("Item")


def is_stream(dataset: Any) -> bool:
    """True for a `datasets.IterableDataset`, told by what it can do: importing it is slow."""
    return not hasattr(dataset, "__len__") and all(
        hasattr(dataset, name) for name in ("set_epoch", "iter", "column_names")
    )


class RowStream:
    """The rows of a `datasets.IterableDataset`, in its own order.

    A chunk is what 1,000 rows of the data set became. Rows are counted from the start of an epoch.

    Attributes:
      head: The first chunk of the first epoch, which shows what the rows are like.
    """

    def __init__(self, dataset: Any, tokenizer: Any, options: RowOptions) -> None:
        """Read and tokenise the head.

        Args:
          dataset: The stream; its `set_epoch` is called at the start of each pass.
          tokenizer: A transformers tokenizer; a copy is used, beside whatever else the run does.
          options: What decides the tokens.

        Raises:
          ValueError: There are no rows, or what `RowReader` refuses.
        """
        self._dataset = dataset
        self._options = options
        self._counted = 0  # chunks whose bad rows are, whichever pass they came in
        self._changes: tuple[Callable[[TokenizedRows], TokenizedRows], ...] = ()
        first = next(self._read(0), None)
        if first is None:
            raise ValueError("`train_dataset` must hold at least one row; the stream gave none.")
        self._reader = RowReader(list(first[0]), copy.deepcopy(tokenizer), options)
        with tokenizer_threads(tokenizer, options.threads) as pool:
            head = self._tokenized(first, 0, pool)
        if not head.rows:
            skipped = "".join(f" Skipped: {line}." for line in self._reader.skipped())
            raise ValueError(
                f"the first {BATCH:,} rows of a stream must have a label to learn; none has."
                f"{skipped} Look at how rows and labels are made, or leave such rows out by "
                "dataset.filter(...)."
            )
        self.head = head

    def change(self, change: Callable[[TokenizedRows], TokenizedRows]) -> None:
        """Change every chunk from now on, for example its labels.

        Args:
          change: Makes new rows of those of a chunk.
        """
        self._changes = (*self._changes, change)
        self.head = change(self.head)

    @property
    def skipped(self) -> tuple[str, ...]:
        """What was left out so far, in words; a row that every pass leaves out counts once."""
        return self._reader.skipped()

    def chunks(self, epoch: int, first: int = 0) -> Iterator[TokenizedRows]:
        """The chunks of a pass.

        Args:
          epoch: Counted from 0.
          first: Chunks to leave out; their rows are read and thrown away, so that a shuffled
            stream goes on exactly, but not tokenised.

        Yields:
          A chunk's rows, maybe none.

        Raises:
          ValueError: Rows that are to be refused.
        """
        with tokenizer_threads(self._reader.tokenizer, self._options.threads) as pool:
            for number, rows in enumerate(self._read(epoch)):
                if number >= first:
                    yield self._tokenized(rows, number, pool)

    def _tokenized(self, rows: list[Any], number: int, pool: Executor | None) -> TokenizedRows:
        """The chunk of this number."""
        reader = self._reader if number >= self._counted else self._reader.again()
        self._counted = max(self._counted, number + 1)
        encoded = reader.read(rows, number * BATCH, pool)
        reader.check()
        chunk = cut_rows(
            encoded, self._options.max_length, learned=reader.learned, skipped=self.skipped
        )
        for change in self._changes:
            chunk = change(chunk)
        return chunk

    def _read(self, epoch: int) -> Iterator[list[dict[str, Any]]]:
        """The rows of a pass as they are, 1,000 at a time."""
        self._dataset.set_epoch(epoch)
        for batch in self._dataset.iter(BATCH):
            yield [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread works on the next while the caller works on this one.

    Args:
      items: Touched by that thread alone.

    Yields:
      Each in its turn; an error is raised where its item would stand.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(list, itertools.islice(items, 1))
        while item := coming.result():
            coming = thread.submit(list, itertools.islice(items, 1))
            yield item[0]
