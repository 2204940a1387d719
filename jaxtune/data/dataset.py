"""Reading the user's data set: what is taken, its columns, its rows a batch at a time."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

# Rows read, formatted and tokenised at once.
BATCH = 1000


def check_dataset(dataset: Any) -> None:
    """Raise unless it is a `datasets.Dataset` or a list of mappings that holds rows.

    Args:
      dataset: What the user passed as data set.

    Raises:
      TypeError: Something else, such as a dictionary of splits.
      ValueError: No rows, or a transform that runs as rows are read.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        names = sorted(map(str, dataset))
        split = next((name for name in ("train", *names) if name in names), "train")
        raise TypeError(
            f"`train_dataset` must be one data set; got a {kind} of {names}. "
            f"Pass one split, such as dataset[{split!r}], or datasets.Dataset.from_dict(columns)."
        )
    if not hasattr(dataset, "__len__") and hasattr(dataset, "__iter__"):
        raise TypeError(
            f"a `train_dataset` without a length must be a datasets.IterableDataset, which can be "
            f"read again; got {kind}. Pass IterableDataset.from_generator(function), or the rows "
            "in a list."
        )
    if _is_table(dataset):
        if dataset.format["type"] == "custom":
            raise ValueError(
                "`train_dataset` must not have a transform that runs as rows are read "
                "(with_transform, set_transform): its rows are read once, so a random one would "
                "be frozen. Apply it with dataset.map(...) first."
            )
    elif not isinstance(dataset, Sequence) or isinstance(dataset, str | bytes):
        raise TypeError(
            f"`train_dataset` must be a datasets.Dataset or a list of mappings; got {kind}. Pass "
            "the rows in a list, or datasets.Dataset.from_pandas(frame) of a data frame."
        )
    if not len(dataset):
        raise ValueError("`train_dataset` must hold at least one row; got none.")


def columns_of(dataset: Any) -> list[str]:
    """The columns: a table's, or those of the first row of a list that is a mapping."""
    if _is_table(dataset):
        return list(dataset.column_names)
    for row in dataset:
        if isinstance(row, Mapping):
            return list(row)
    raise ValueError(
        "every row must be a mapping of column names to values; row 0 is "
        f"{type(dataset[0]).__name__}. Pass rows such as {{'text': ...}}."
    )


def row_batches(
    dataset: Any, columns: Collection[str] | None = None, values: str | None = None
) -> Iterator[tuple[int, list[Any]]]:
    """The rows in order, some at a time.

    Args:
      dataset: One that `check_dataset` let pass.
      columns: Those that are read of a table; None: all.
      values: The format in which a table gives its values; None: Python's own. The format that
        the user set, which may hide columns, does not count.

    Yields:
      The number of the first row, and up to 1,000 rows.
    """
    if _is_table(dataset):
        names = [name for name in dataset.column_names if columns is None or name in columns]
        dataset = dataset.select_columns(names).with_format(values)
    for start in range(0, len(dataset), BATCH):
        stop = min(start + BATCH, len(dataset))
        if _is_table(dataset):
            part = dataset[start:stop]
            rows = zip(*part.values(), strict=True)
            yield start, [dict(zip(part, row, strict=True)) for row in rows]
        else:
            yield start, [dataset[number] for number in range(start, stop)]


def _is_table(dataset: Any) -> bool:
    """True for a `datasets.Dataset`, told by what it can do: importing it takes a second."""
    return hasattr(dataset, "column_names") and hasattr(dataset, "select_columns")
