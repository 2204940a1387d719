"""Tokenised rows kept beside the data set's own files, under a fingerprint of what made them.

The fingerprint is of the data set's (that of `datasets`, which follows its contents), the tokenizer
and the options. Not kept: rows of a data set in memory, which has no files; of a `formatting_func`,
whose code may read anything (`dataset.map` keeps what it makes); of a tokenizer written in Python.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from jaxtune import processes
from jaxtune.data.row_options import RowOptions
from jaxtune.data.rows import TokenizedRows
from jaxtune.data.sources import cache_folder

# Raised where the same data set and options become other rows.
FORMAT = 1
# Of `TokenizedRows`, beside its arrays.
_SAID = ("truncated", "tokens_lost", "first_truncated", "eos_appended", "dropped", "skipped")


def cache_file(dataset: Any, tokenizer: Any, options: RowOptions) -> Path | None:
    """Where the rows of this request are kept, if they are.

    Args:
      dataset: From the user.
      tokenizer: A transformers tokenizer.
      options: What decides the tokens.

    Returns:
      A path, of a file or of none yet; None: they are not kept.
    """
    folder = cache_folder(dataset)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if folder is None or backend is None or options.formatting_func is not None:
        return None
    asked = dataclasses.asdict(options)
    del asked["threads"]
    template = str(getattr(tokenizer, "chat_template", None))
    parts = [
        FORMAT,
        transformers.__version__,
        tokenizers.__version__,
        dataset._fingerprint,
        asked,
        template,
        # Some templates write the day.
        str(datetime.date.today()) if "strftime_now" in template else "",
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.split_special_tokens,
        backend.to_str(),
    ]
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
    return folder / f"jaxtune-{key}.npz"


def read_rows(file: Path) -> TokenizedRows | None:
    """The rows in a file; None: there is none, or it is damaged.

    Args:
      file: From `cache_file`.

    Returns:
      What was written.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            said: dict[str, Any] = json.loads(held["said"].tobytes())
            ends = held["ends"]
            rows = _split(held["ids"], ends)
            labels = _split(held["labels"], ends) if "labels" in held else None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    said |= {name: tuple(said[name]) for name in ("first_truncated", "skipped")}
    return TokenizedRows(rows=rows, labels=labels, **said)


def write_rows(file: Path, rows: TokenizedRows) -> None:
    """Write rows, whole or not at all; where the folder takes no file, nothing is kept.

    Of several processes, whose numbers may be the same on several hosts, the first alone writes.

    Args:
      file: From `cache_file`.
      rows: To keep.
    """
    if not processes.is_first():
        return
    said = {name: getattr(rows, name) for name in (*_SAID, "learned")}
    arrays = {
        "said": np.frombuffer(json.dumps(said).encode(), np.uint8),
        "ends": np.cumsum([len(row) for row in rows.rows]),
        "ids": np.concatenate(rows.rows),
    }
    if rows.labels is not None:
        arrays["labels"] = np.concatenate(rows.labels)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            np.savez(stream, **arrays)
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)


def _split(values: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    starts = [0, *ends[:-1].tolist()]
    return [values[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]
