"""Rows that are tokens already: `input_ids`, with or without `labels` and `attention_mask`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtune.data.dataset import columns_of, row_batches
from jaxtune.errors import NotBuiltYetError

_COLUMNS = ("input_ids", "labels", "attention_mask")
# Columns that change the loss or the attention; ignoring one would train something else.
_NOT_BUILT = ("completion_mask", "assistant_masks", "seq_lengths")


def token_rows(dataset: Any) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """The rows of the `input_ids` column, as they are; no BOS and no EOS is added.

    Where a row has an `attention_mask`, the tokens under its zeros are padding and are dropped on
    either side; a token is never taken for padding by its value.

    Args:
      dataset: One that `check_dataset` let pass, with the column.

    Returns:
      Ids and labels of each row, int32; labels are None if there is no such column.

    Raises:
      ValueError: Not lists of integers, unequal lengths, or a mask with holes.
      NotBuiltYetError: Masks or packed rows that only TRL's own collator reads.
    """
    columns = columns_of(dataset)
    labelled = "labels" in columns
    unread = [
        name for name in _NOT_BUILT if name in columns and not (labelled and name != "seq_lengths")
    ]
    if unread:
        raise NotBuiltYetError(
            f"rows of `input_ids` with the column `{unread[0]}` are not built yet. Give `labels` "
            "that are -100 where nothing is learned, and one document a row."
        )
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    # Lists of Python's integers take longer to read than arrays.
    for start, batch in row_batches(dataset, _COLUMNS, values="numpy"):
        for number, row in enumerate(batch, start):
            if "input_ids" not in row or ("labels" in row) != labelled:
                raise ValueError(
                    f"every row must have the columns of the first, {columns}; row {number} has "
                    f"{sorted(row)}."
                )
            ids, *its_labels = _row(row, number)
            rows.append(ids)
            labels.extend(its_labels)
    return rows, labels if labelled else None


def _row(row: Mapping[str, Any], number: int) -> list[np.ndarray]:
    """Ids and, where there are some, labels; padding dropped."""
    names = [name for name in _COLUMNS if name in row]
    arrays = {name: _integers(row[name], name, number) for name in names}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the columns of a row must have one length; row {number} has {lengths} tokens."
        )
    mask = arrays.pop("attention_mask", None)
    if mask is None:
        return list(arrays.values())
    kept = np.flatnonzero(mask)
    if not np.isin(mask, (0, 1)).all() or (len(kept) and kept[-1] - kept[0] >= len(kept)):
        raise ValueError(
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
        raise ValueError(f"{refusal}{value!r:.60}.") from error
    kinds = "iub" if name == "attention_mask" else "iu"
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise ValueError(f"{refusal}{value!r:.60}.")
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise ValueError(f"{refusal}{array.min()} to {array.max()}, beyond 32 bits.")
    return array.astype(np.int32)
