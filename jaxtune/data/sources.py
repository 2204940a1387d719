"""Data sets in files, and where a data set itself lies; the one module that imports `datasets`."""

import os
from pathlib import Path
from typing import Any

# The reader of `datasets` for a file's ending, and its options.
_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}


def opened(dataset: Any) -> Any:
    """The data set of a file or several; anything else as it is.

    Args:
      dataset: From the user: a path, a list of paths of one kind, or a data set.

    Returns:
      A `datasets.Dataset`, which `datasets` keeps in its cache; or what was given.

    Raises:
      ValueError: There is no such file, its kind is not known, or it cannot be read.
    """
    paths = _paths(dataset)
    if not paths:
        return dataset
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"`train_dataset` must be a data set, or the path of a file; there is no file "
            f"{missing[0]!r}. Load a data set of the hub first: "
            f"datasets.load_dataset({missing[0]!r}, split='train')."
        )
    endings = {path.suffix.lower() for path in paths}
    if len(endings) > 1 or not endings <= _READERS.keys():
        raise ValueError(
            f"files of rows must be of one kind, one of {', '.join(_READERS)}; got "
            f"{', '.join(sorted(endings))}. Load others by `datasets`, and pass the data set."
        )
    return _loaded([str(path) for path in paths], *_READERS[endings.pop()])


def _paths(dataset: Any) -> list[Path]:
    if isinstance(dataset, str | os.PathLike):
        return [Path(dataset)]
    if isinstance(dataset, list | tuple) and all(
        isinstance(path, str | os.PathLike) and Path(path).suffix.lower() in _READERS
        for path in dataset
    ):
        return [Path(path) for path in dataset]
    return []


def _loaded(files: list[str], reader: str, options: dict[str, Any]) -> Any:
    import datasets

    try:
        return datasets.load_dataset(reader, data_files=files, split="train", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(
            f"a {reader} file must hold rows with the same columns; {', '.join(files)} cannot be "
            f"read: {error.__cause__ or error!s:.300}. Correct it, or pass the rows in a list."
        ) from error


def cache_folder(dataset: Any) -> Path | None:
    """Where `datasets` keeps the files of a data set, and what is made of it.

    Args:
      dataset: From the user.

    Returns:
      The folder; None: it is no `datasets.Dataset`, lies in memory, or nothing is to be cached.
    """
    files = getattr(dataset, "cache_files", None)
    if not files or not hasattr(dataset, "_fingerprint"):
        return None
    import datasets

    return Path(files[0]["filename"]).parent if datasets.is_caching_enabled() else None
