"""Write and read one file: safetensors and JSON, atomically.

A reader sees the old file or the new one, never a half of either: the new file is written beside,
flushed to the disk, and then renamed over the old one.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from convert.errors import broken, shown
from convert.header import DTYPES, read_header

# What a mount that cannot sync a folder answers (FUSE, some network drives).
_CANNOT_SYNC_FOLDER = frozenset({errno.EINVAL, errno.ENOTSUP})


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Replace `path` by what the body writes, all of it or nothing.

    Args:
      path: The file to create or replace; its folder exists. A link is replaced, not followed.

    Yields:
      A new, empty file in the same folder, for the body to write. It is gone afterwards, also on
      failure.

    Raises:
      OSError: the disk refused; the old file stands unless only the last folder sync failed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # what the user's umask says; safetensors 0.8 leaves 0600
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)  # noqa: PTH105 - one name for tests to fail
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, on mounts that can do so.

    Args:
      folder: An existing folder.

    Raises:
      OSError: the disk refused.
    """
    try:
        _sync(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDER:
            raise


def _sync(path: Path, flags: int) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file's bytes, atomically; a link is followed.

    Args:
      source: An existing file.
      path: The file to create or replace; its folder exists. It may be `source` itself.

    Raises:
      OSError: the disk refused.
    """
    with atomic(path) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON: keys sorted, two spaces, as Hugging Face's libraries do; atomically.

    Args:
      path: The file to create or replace; its folder exists.
      value: What `json` can write; NaN and infinities are refused, since JSON has none.

    Raises:
      TypeError: a part of `value` has no JSON form.
      ValueError: `value` holds NaN or an infinity.
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write named arrays as one safetensors file, atomically.

    Args:
      path: The file to create or replace; its folder exists.
      tensors: Arrays of any layout; one that is not contiguous and little-endian is copied.
      metadata: The header's text, `{"format": "pt"}` for files that PyTorch users load.

    Raises:
      CheckpointError: a dtype that safetensors cannot hold, or the reserved name `__metadata__`.
    """
    known = frozenset(DTYPES.values())
    for name, array in tensors.items():
        if array.dtype.newbyteorder("=") not in known or name == "__metadata__":
            raise broken(
                f"The tensor {shown(name)} must be one that safetensors can hold",
                got=f"dtype {array.dtype}",
                wanted=f"one of {', '.join(map(str, known))}, and a name other than __metadata__",
                cure="Cast or rename it before writing.",
            )
    plain = {name: _plain(array) for name, array in tensors.items()}
    with atomic(path) as temporary:
        # An empty dict beside no tensors makes safetensors 0.8 write a header that is not JSON.
        safetensors.numpy.save_file(plain, temporary, metadata=dict(metadata) or None)


def _plain(array: np.ndarray) -> np.ndarray:
    """Return the array contiguous and in native byte order; `ascontiguousarray` would lift 0-d."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Read a whole safetensors file; for adapters, which are small. See `open_checkpoint` else.

    Args:
      file: The file.

    Returns:
      Every tensor by its name.

    Raises:
      CheckpointError: what `read_header` refuses.
    """
    names = read_header(file)
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            return {name: handle.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise broken(
            f"{file} must be a safetensors file",
            got=shown(str(error)),
            wanted="one that the safetensors library reads",
            cure="The file is damaged: delete it and download or save it again.",
        ) from error
