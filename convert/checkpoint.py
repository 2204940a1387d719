"""A Hugging Face folder of safetensors as lazy numpy arrays. Pickle is never read."""

import contextlib
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, TracebackType
from typing import BinaryIO

import numpy as np

from convert.errors import CheckpointError, broken, shown
from convert.header import TensorInfo, read_header
from convert.json_object import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of a folder, read one at a time; use it in a `with` statement.

    Headers are read and checked when it is opened; a tensor's bytes only by `read` and `read_rows`,
    which several threads may call at a time. Arrays that were read stay valid.
    """

    def __init__(self, folder: Path, infos: Mapping[str, TensorInfo]) -> None:
        """Take checked headers; use `open_checkpoint`."""
        self._folder = folder
        self._infos = MappingProxyType(dict(infos))
        self._files: dict[Path, BinaryIO] = {}
        self._opening = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._closed = False

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return tuple(sorted(self._infos))

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def info(self, name: str) -> TensorInfo:
        """Look up shape, dtype and file of a tensor without reading it.

        Args:
          name: One of `names`.

        Returns:
          What the header says.

        Raises:
          CheckpointError: there is no such tensor.
        """
        if name not in self._infos:
            raise broken(
                f"A tensor's name must be in {self._folder}",
                got=shown(name),
                wanted=f"one of its {len(self._infos)} names, such as {shown(self.names[:3])}",
                cure="Check that the folder holds the model family that you load.",
            )
        return self._infos[name]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor.

        Args:
          name: One of `names`.

        Returns:
          An array of `info(name)`'s shape and dtype that owns its memory.

        Raises:
          CheckpointError: no such tensor, a file that changed since, or the `with` has ended.
        """
        info = self.info(name)
        array = np.empty(info.shape, info.dtype)
        self._read(info, info.begin, array)
        return array

    def read_rows(self, name: str, start: int, stop: int, buffer: np.ndarray) -> np.ndarray:
        """Read some rows of one tensor into memory that the caller has.

        Args:
          name: One of `names`; its tensor has an axis at least.
          start: First of the rows, along the first axis.
          stop: After the last.
          buffer: uint8, [at least the rows' bytes], contiguous.

        Returns:
          The rows, a view of `buffer`.

        Raises:
          CheckpointError: as `read`.
        """
        info = self.info(name)
        shape = (stop - start, *info.shape[1:])
        row = math.prod(info.shape[1:]) * info.dtype.itemsize
        rows = buffer[: shape[0] * row].view(info.dtype).reshape(shape)
        self._read(info, info.begin + start * row, rows)
        return rows

    def _read(self, info: TensorInfo, place: int, array: np.ndarray) -> None:
        """Fill an array with the bytes of a file from a place on."""
        target = array.reshape(-1).view(np.uint8).data
        descriptor = self._open(info.file)
        while len(target):
            count = os.preadv(descriptor, [target], place)
            if count == 0:
                raise broken(
                    f"{info.file} must stay as it was when it was opened",
                    got=f"its end at byte {place}",
                    wanted=f"{len(target)} bytes more",
                    cure="Load it again when nothing else writes it.",
                )
            target, place = target[count:], place + count

    def _open(self, file: Path) -> int:
        """The descriptor of a file, which stays open until the `with` statement ends."""
        with self._opening:
            if self._closed:
                raise broken(
                    f"{self._folder} must be open to be read",
                    got="a checkpoint whose `with` statement has ended",
                    wanted="a read inside it",
                    cure="Move the read inside, or call open_checkpoint again.",
                )
            if file not in self._files:
                self._files[file] = self._stack.enter_context(file.open("rb", buffering=0))
            return self._files[file].fileno()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        with self._opening:
            self._closed = True
            self._files.clear()
            self._stack.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open `model.safetensors`, or `model.safetensors.index.json` and its shards, for reading.

    Args:
      folder: A Hugging Face model folder; a snapshot in the hub's cache, whose files are links,
        is one too. A file that the index names must lie in the folder itself.

    Returns:
      The checkpoint, to be used in a `with` statement.

    Raises:
      CheckpointError: no folder, no safetensors in it (pickle is never read), a shard that is
        missing or damaged, an index that names a path or promises what its shard lacks, or a
        tensor that stands in two shards.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return Checkpoint(folder, read_header(single))
    if not index.is_file():
        raise _no_weights(folder)
    promised = read_weight_map(index)
    infos: dict[str, TensorInfo] = {}
    for shard in sorted(set(promised.values())):
        for name, info in read_header(folder / shard).items():
            if name in infos:
                raise CheckpointError(
                    f"A tensor must stand in one shard; got {shown(name)} in "
                    f"{infos[name].file.name} and {shard} of {folder}; wanted it once. "
                    f"Save the model again, so that shards and index agree."
                )
            infos[name] = info
    for name, shard in promised.items():
        if name not in infos or infos[name].file.name != shard:
            raise broken(
                f"Each shard must hold what {index} promises",
                got=f"{shard} without {shown(name)}",
                wanted="the shards that belong to this index",
                cure="Download or save the folder again, all of it.",
            )
    return Checkpoint(folder, infos)


def read_weight_map(index: Path) -> dict[str, str]:
    """Read which file holds each tensor, and check the names as text; no shard need be there yet.

    Args:
      index: A `model.safetensors.index.json`.

    Returns:
      Tensor name -> a bare file name, to be looked for in the index's own folder.

    Raises:
      CheckpointError: it is no JSON, has no weight map, or names a path.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise broken(
            f"{index} must have a `weight_map`",
            got=shown(weight_map),
            wanted="an object from tensor names to file names",
            cure="Download or save the folder again.",
        )
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise broken(
                f"{index} must name files of its own folder",
                got=f"{shown(shard)} for {shown(name)}",
                wanted="a bare file name that ends in .safetensors",
                cure="Do not use this checkpoint unless you trust its source.",
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    """True for a file name without folder, drive or NUL, on any system."""
    bare = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return bare and name.endswith(".safetensors") and "\0" not in name


def _no_weights(folder: Path) -> CheckpointError:
    """Say why there is nothing to read, and what the user can do about it."""
    rule = f"A checkpoint must be a folder with {SINGLE_FILE} or {INDEX_FILE}"
    wanted = "a folder that transformers' save_pretrained wrote"
    if not folder.is_dir():
        return broken(
            rule, got=f"no folder at {folder}", wanted=wanted, cure="Check the path or download it."
        )
    files = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in files if name.startswith("pytorch_model") and "bin" in name]
    if pickles:
        return broken(
            rule,
            got=f"only pickle in {folder} ({pickles[0]}), which can run code and is never read",
            wanted=wanted,
            cure="If you trust it, convert it once where torch is installed: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder).",
        )
    if "adapter_model.safetensors" in files:
        cure = "This is a LoRA adapter: open the base model that adapter_config.json names."
        return broken(rule, got=f"an adapter in {folder}", wanted=wanted, cure=cure)
    return broken(
        rule, got=f"{shown(files)} in {folder}", wanted=wanted, cure="Check the path, or download."
    )
