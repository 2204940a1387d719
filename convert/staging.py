"""Replace a folder's files together: built in a hidden folder beside, then moved into place."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from convert.tensors import sync_folder


@contextlib.contextmanager
def staged_folder(folder: Path, names: Sequence[str], stale: Sequence[str]) -> Iterator[Path]:
    """Fill a folder with new files, all of them or none.

    Args:
      folder: Created, with its parents, if it is missing; a link to a folder is followed.
      names: The files that the body writes, in the order in which they appear in an old folder.
      stale: Old files that go after them; other old files stay.

    Yields:
      A new, hidden folder beside `folder`, for the body to fill. It is gone afterwards.

    Raises:
      OSError: the disk refused. As on any other failure, `folder` is as it was before.
    """
    target = folder.resolve()
    staging = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    with contextlib.ExitStack() as undo:
        for parent in reversed([place for place in target.parents if not place.exists()]):
            parent.mkdir()
            undo.callback(parent.rmdir)
        try:
            staging.mkdir()
            yield staging
            if target.exists():
                _move(staging, target, names, stale)
            else:
                os.rename(staging, target)  # noqa: PTH104 - one name for tests to fail
            undo.pop_all()
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    sync_folder(target)
    sync_folder(target.parent)


def _move(staging: Path, target: Path, names: Sequence[str], stale: Sequence[str]) -> None:
    """Move files into a folder that exists; on a failure, move its old ones back."""
    old = staging / "replaced"
    old.mkdir()
    with contextlib.ExitStack() as undo:
        for name in (*names, *stale):
            if os.path.lexists(target / name):
                os.replace(target / name, old / name)  # noqa: PTH105
                undo.callback(os.replace, old / name, target / name)
            if name not in stale:
                os.replace(staging / name, target / name)  # noqa: PTH105
                undo.callback((target / name).unlink)
        undo.pop_all()
