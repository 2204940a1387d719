"""`resume.json`: what a run must have in common with its checkpoint, and what belongs to it."""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from convert import CheckpointError, read_json_object, write_json
from jaxtune.data.collate import Place

MANIFEST_FILE = "resume.json"
FORMAT = 2
PIECE = 1 << 20  # bytes read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What decides which rows a step sees; a run goes on exactly only where all of it is the same.

    Attributes:
      seed: Of the data order and of dropout.
      batch_size: Rows of a micro-batch, on all devices.
      gradient_accumulation_steps: Micro-batches a step.
      rows: Training rows.
      data: Digest of the tokenised rows.
      packing: How they are packed, and to what length; None: they are not.
      sampling: Their order, "random" or another.
      drop_last: Rows that do not fill a micro-batch are left out.
    """

    seed: int
    batch_size: int
    gradient_accumulation_steps: int
    rows: int
    data: str
    packing: str | None
    sampling: str = "random"
    drop_last: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
      identity: Of the run that wrote it.
      optim: Name of its optimizer in the options.
      place: Where in the data the next step begins.
      loss_total: Sum of all steps' losses.
      unlogged: Losses of the steps since the last log record.
      arrays: Shape and dtype of each array in the tree, by name.
    """

    identity: Identity
    optim: str
    place: Place
    loss_total: float
    unlogged: list[float]
    arrays: dict[str, tuple[tuple[int, ...], str]]

    def blank(self, name: str) -> np.ndarray:
        """An array of the shape and dtype of one in the tree."""
        shape, dtype = self.arrays[name]
        return np.zeros(shape, _dtype(dtype))


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of arrays, or of what has both, by name."""
    return {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in arrays.items()}


def write_manifest(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Write `resume.json`, with size and checksum of the files that a resumed run will read.

    Args:
      folder: The checkpoint, otherwise complete.
      manifest: What it says.
      names: The files, or folders with all that is in them, relative to `folder`.
    """
    files = {}
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                files[file.relative_to(folder).as_posix()] = _sum(file)
    values = {"format": FORMAT, **dataclasses.asdict(manifest), "files": files}
    write_json(folder / MANIFEST_FILE, values)


def read_manifest(folder: Path) -> Manifest:
    """Read `resume.json`, and check that the files it names are what was written.

    Args:
      folder: A checkpoint with that file.

    Returns:
      What it says.

    Raises:
      CheckpointError: It is damaged or of another version, or a file is missing or damaged.
    """
    values = read_json_object(folder / MANIFEST_FILE)
    if values.pop("format", None) != FORMAT:
        raise _unfit(folder / MANIFEST_FILE, f"a file that does not say format {FORMAT}")
    try:
        files: Any = values.pop("files")
        identity: Any = values["identity"]
        values["identity"] = Identity(**identity)
        place: Any = values["place"]
        values["place"] = Place(**place)
        arrays: Any = values["arrays"]
        values["arrays"] = {
            name: (tuple(int(n) for n in shape), _dtype(dtype).name)
            for name, (shape, dtype) in arrays.items()
        }
        manifest = Manifest(**values)  # pyrefly: ignore[bad-argument-type]
        sums = {str(name): (int(size), int(crc)) for name, (size, crc) in files.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unfit(folder / MANIFEST_FILE, f"{type(error).__name__}: {error}") from error
    for name, wanted in sums.items():
        if not (folder / name).is_file():
            raise _unfit(folder / name, "no such file")
        found = _sum(folder / name)
        if found != wanted:
            raise _unfit(
                folder / name,
                f"{found[0]:,} bytes of checksum {found[1]:08x}, not {wanted[0]:,} of "
                f"{wanted[1]:08x}",
            )
    return manifest


def _dtype(name: str) -> np.dtype:
    """NumPy's dtype of a name; bfloat16 is not NumPy's own."""
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def _sum(file: Path) -> tuple[int, int]:
    """A file's size, bytes, and its CRC-32."""
    size = crc = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            size += len(piece)
            crc = zlib.crc32(piece, crc)
    return size, crc


def _unfit(file: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint to resume from must be as it was written; got {file}: {got}. Resume from "
        "an earlier one, resume_from_checkpoint='.../checkpoint-N'; or load the adapter in it and "
        "start anew."
    )
