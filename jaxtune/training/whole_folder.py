"""Folders that appear whole, and go whole, whenever the process is killed."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

# What a mount that cannot sync a folder answers (FUSE, some network drives).
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})

# Hidden siblings of a folder: what is being written, what was replaced, what was removed.
_FRESH, _OLD, _GONE = "tmp", "old", "gone"


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Make a folder appear with all that the body writes, or not at all.

    The body writes into a hidden sibling, which is flushed to the disk and renamed. An older
    `target` is moved aside just before that, and back if the renaming fails.

    Args:
      target: The folder to create or replace; its parents are created.

    Yields:
      An empty folder to write into. It is gone afterwards, also on failure.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = _sibling(target, _FRESH), _sibling(target, _OLD)
    fresh.mkdir()
    try:
        yield fresh
        _sync_below(fresh)
        _swap(fresh, target, old)
    finally:
        # Nothing is left of either after a success; an error here must not hide the body's.
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def remove_folder(target: Path) -> None:
    """Remove a folder so that no half of it is ever seen: it is renamed first.

    Args:
      target: An existing folder.
    """
    gone = _sibling(target, _GONE)
    target.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(parent: Path, name: str) -> None:
    """Remove what a killed process left; a folder that it was about to replace comes back.

    Args:
      parent: Where `whole_folder` and `remove_folder` were at work; no other process may be.
      name: How the names of the folders begin.
    """
    for left in parent.glob(f".{name}*.{_OLD}"):
        target = parent / left.name[1:].rsplit(".", 2)[0]
        if not target.exists():
            left.rename(target)
    for suffix in (_FRESH, _OLD, _GONE):
        for left in parent.glob(f".{name}*.{suffix}"):
            shutil.rmtree(left, ignore_errors=True)


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.{suffix}")


def _swap(fresh: Path, target: Path, old: Path) -> None:
    """Rename `fresh` to `target`; POSIX replaces no folder that holds files, so it goes first."""
    try:
        target.rename(old)
    except FileNotFoundError:
        fresh.rename(target)
        return
    try:
        fresh.rename(target)
    except BaseException:
        old.rename(target)
        raise


def _sync_below(folder: Path) -> None:
    """Wait until every file under a folder, and the folders' names, are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
