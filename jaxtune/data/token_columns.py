"""Rows that are tokens already: `input_ids`, with or without `labels` and `attention_mask`."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from jaxtune.data.bad_rows import BadRowError, BadRows, good_rows
from jaxtune.data.encoded import Encoded
from jaxtune.data.rows import EVERY_TOKEN
from jaxtune.errors import NotBuiltYetError

_COLUMNS = ("input_ids", "labels", "attention_mask")
# Columns that change the loss or the attention; ignoring one would train something else.
_NOT_BUILT = ("completion_mask", "assistant_masks", "seq_lengths")


class TokenColumns:
    """The rows of the `input_ids` column, as they are; no BOS and no EOS is added.

    Where a row has an `attention_mask`, the tokens under its zeros are padding and are dropped on
    either side; a token is never taken for padding by its value.

    Attributes:
      columns: Those that are read.
      values: The format in which a table gives them: Python's lists take longer to read.
      learned: What the labels name, in words.
    """

    columns: Collection[str] | None = _COLUMNS
    values: str | None = "numpy"

    def __init__(self, columns: Sequence[str]) -> None:
        """Look at the columns.

        Args:
          columns: Of the data set, `input_ids` among them.

        Raises:
          NotBuiltYetError: Masks or packed rows that only TRL's own collator reads.
        """
        self._present = list(columns)
        self._labelled = "labels" in columns
        self.learned = "what the column `labels` names" if self._labelled else EVERY_TOKEN
        unread = [
            name
            for name in _NOT_BUILT
            if name in columns and not (self._labelled and name != "seq_lengths")
        ]
        if unread:
            raise NotBuiltYetError(
                f"rows of `input_ids` with the column `{unread[0]}` are not built yet. Give "
                "`labels` that are -100 where nothing is learned, and one document a row."
            )

    def encode(
        self,
        rows: Sequence[Any],
        first: int,
        bad: BadRows,
        pool: Executor | None = None,
    ) -> Encoded:
        """Ids and labels of some rows.

        Args:
          rows: Of the data set.
          first: Number of the first.
          bad: Takes those that are no lists of integers, of unequal lengths, or masked with holes.
          pool: Not needed.

        Returns:
          A row for each good one.
        """
        del pool
        kept = good_rows(rows, first, bad, self._row)
        return Encoded(
            numbers=[number for number, _ in kept],
            rows=[ids for _, (ids, *_) in kept],
            labels=[labels for _, (_, labels) in kept] if self._labelled else None,
        )

    def _row(self, row: Mapping[str, Any], number: int) -> list[np.ndarray]:
        if "input_ids" not in row or ("labels" in row) != self._labelled:
            raise BadRowError(
                f"every row must have the columns of the first, {self._present}; row {number} has "
                f"{sorted(row)}."
            )
        return _row(row, number)


def _row(row: Mapping[str, Any], number: int) -> list[np.ndarray]:
    """Ids and, where there are some, labels; padding dropped."""
    names = [name for name in _COLUMNS if name in row]
    arrays = {name: _integers(row[name], name, number) for name in names}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise BadRowError(
            f"the columns of a row must have one length; row {number} has {lengths} tokens."
        )
    mask = arrays.pop("attention_mask", None)
    if mask is None:
        return list(arrays.values())
    kept = np.flatnonzero(mask)
    if not np.isin(mask, (0, 1)).all() or (len(kept) and kept[-1] - kept[0] >= len(kept)):
        raise BadRowError(
            "`attention_mask` must be ones, with zeros at the ends of the row only; row "
            f"{number} has {mask.tolist() if len(mask) < 20 else 'others'}. Take the masked "
            "tokens out, or mask their labels by -100."
        )
    return [array[kept] for array in arrays.values()]


def _integers(value: Any, name: str, number: int) -> np.ndarray:
    """The value as int32, [T]."""
    refusal = f"the column `{name}` must hold a list of integers a row; row {number} holds "
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        raise BadRowError(f"{refusal}{value!r:.60}.") from error
    kinds = "iub" if name == "attention_mask" else "iu"
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise BadRowError(f"{refusal}{value!r:.60}.")
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise BadRowError(f"{refusal}{array.min()} to {array.max()}, beyond 32 bits.")
    return array.astype(np.int32)
