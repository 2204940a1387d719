"""Room on the disk, looked at before anything large is begun."""

import shutil
from pathlib import Path

from convert.errors import broken


def check_space(target: Path, wanted: int) -> None:
    """Check that the disk can hold a new file or folder beside the old one, which stays till then.

    Args:
      target: What will be written; it and folders above it may be missing.
      wanted: Bytes.

    Raises:
      CheckpointError: there is less room.
    """
    place = next(place for place in target.resolve().parents if place.is_dir())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise broken(
            f"The disk of {place} must have room for all of {target.name} before it is begun",
            got=f"{free / 1e9:.3f} GB free",
            wanted=f"{wanted / 1e9:.3f} GB",
            cure="Free some space, or choose a folder on another disk.",
        )
