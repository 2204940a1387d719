"""From what the user names to a data set: a file, a folder of files, or a hub id."""

import json
import os
from pathlib import Path
from typing import Any

# Endings of files, and the reader of `datasets` for each.
READERS = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_SAVED = "dataset_info.json"  # what `Dataset.save_to_disk` writes


def load_rows(name: str, split: str, *, option: str, config: str | None = None) -> Any:
    """Read a data set.

    Args:
      name: File or folder, or "owner/name" on the hub.
      split: Of a hub data set.
      option: That named it, for messages.
      config: Name of a configuration of a hub data set.

    Returns:
      A `datasets.Dataset`.

    Raises:
      FileNotFoundError: There is no such file, or the hub has no such data set.
      ConnectionError: The hub cannot be reached.
      ValueError: The files are of no known kind, damaged, or hold no rows.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if _is_path(name):
            raise FileNotFoundError(
                f"{option} must be a file, a folder of files, or a hub id; there is nothing at "
                f"{path.absolute()}. Check the path."
            )
        return _from_hub(name, split, option, config)
    if (path / _SAVED).is_file():
        import datasets

        return datasets.Dataset.load_from_disk(str(path))
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in READERS)
    kinds = {READERS.get(file.suffix.lower()) for file in files}
    if len(kinds) != 1 or None in kinds:
        held = ", ".join(sorted({file.suffix or file.name for file in files})) or "none of these"
        raise ValueError(
            f"{option} must be files of one kind, ending in {', '.join(READERS)}; {path} is or "
            f"holds {held}. Name one file."
        )
    return _from_files(files, str(kinds.pop()), option)


def _is_path(name: str) -> bool:
    """True for what a user means as a path, and not as a hub id."""
    known = Path(name).suffix.lower() in READERS
    return known or name.startswith((".", "~", "/")) or name.count("/") > 1


def _from_files(files: list[Path], reader: str, option: str) -> Any:
    import datasets

    empty = [file for file in files if not file.stat().st_size]
    if empty:
        raise ValueError(f"{option} must hold at least one row; {empty[0]} is empty.")
    try:
        return datasets.load_dataset(reader, data_files=[str(f) for f in files], split="train")
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        places = [place for file in files if (place := _bad_line(file)) is not None]
        reason = places[0] if places else " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{option} must be readable as {reader}; {files[0]}: {reason}. Correct the file."
        ) from error


def _bad_line(file: Path) -> str | None:
    """The first line of a .jsonl file that is no JSON object, and why."""
    if file.suffix.lower() != ".jsonl":
        return None
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line) if line.strip() else {}
            except (json.JSONDecodeError, RecursionError) as error:
                return f"line {number} is no JSON ({error})"
            if not isinstance(value, dict):
                return f"line {number} is a {type(value).__name__}, not an object"
    return None


def _from_hub(name: str, split: str, option: str, config: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{option} must be a file, a folder of files, or a data set of the hub; {name!r} is no "
            f"file here, and the hub does not show it ({_short(error)}). Check the spelling; if it "
            "is private or gated, run `hf auth login`."
        ) from error
    except ValueError as error:  # a split or configuration that is not there
        raise ValueError(f"{option}: {name}: {_short(error)}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ConnectionError(
            f"{option} names no file here, and the hub cannot be asked for {name!r} "
            f"({_short(error)}). Check the spelling or the network, or name a file."
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def check_writable(folder: Path, option: str) -> None:
    """Refuse a folder that cannot be written to, before hours are spent on what goes there.

    Args:
      folder: Created if need be.
      option: That named it, for the message.

    Raises:
      OSError: It cannot be made, or is not to be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "no permission to write there"
    except OSError as error:
        writable, reason = False, error.strerror or str(error)
    if not writable:
        raise PermissionError(
            f"{option} must be a folder that can be written to; {folder}: {reason}. Name another."
        )
