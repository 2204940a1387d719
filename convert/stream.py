"""Write a safetensors file tensor by tensor: the host holds one tensor, however large the file.

Tensors are read in the order in which they are given, so that some of them can be computed
together, and each is written to its own place in the file.

The bytes are those of the safetensors library: tensors ordered by dtype, widest first, then by
name, so that each begins at a multiple of its width.
Source: https://github.com/huggingface/safetensors `safetensors/src/tensor.rs` @ v0.8.0 (`prepare`).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convert.errors import broken, shown
from convert.header import DTYPES
from convert.tensors import atomic

Progress = Callable[[str, int], object]

# Narrow to wide, as the library's `Dtype` counts them; its place decides a tensor's place.
_ORDER = ("BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64")
_CODES = {DTYPES[code]: code for code in _ORDER}
_LENGTH_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor that is read or computed only when its turn to be written comes.

    Attributes:
      shape: Extents.
      dtype: numpy's dtype; bfloat16 is `ml_dtypes.bfloat16`.
      read: Gives the array, of exactly this shape and dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_lazy_safetensors(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    *,
    progress: Progress | None = None,
) -> None:
    """Write one safetensors file, atomically, with one tensor in memory at a time.

    Args:
      path: The file to create or replace; its folder exists.
      tensors: What to write; each is read once, in this order.
      metadata: The header's text, `{"format": "pt"}` for files that PyTorch users load.
      progress: Called after each tensor with its name and its bytes.

    Raises:
      CheckpointError: a dtype that safetensors cannot hold, the reserved name `__metadata__`, or a
        tensor that was read with another shape or dtype than declared. Nothing is left behind.
    """
    header, places = _layout(tensors, metadata)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        stream.write(header)
        for name, tensor in tensors.items():
            stream.seek(places[name])
            _write_tensor(stream, name, tensor)
            if progress is not None:
                progress(name, tensors[name].nbytes)


def safetensors_bytes(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> int:
    """Say how large the file of `write_lazy_safetensors` will be, without reading a tensor.

    Args:
      tensors: What will be written.
      metadata: The header's text.

    Returns:
      The file's size in bytes.

    Raises:
      CheckpointError: as `write_lazy_safetensors`.
    """
    header, _ = _layout(tensors, metadata)
    return len(header) + sum(tensor.nbytes for tensor in tensors.values())


def _layout(
    tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, and for each tensor the byte of the file at which it begins."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES or name == "__metadata__":
            raise broken(
                f"The tensor {shown(name)} must be one that safetensors can hold",
                got=f"dtype {tensor.dtype}",
                wanted=f"one of {', '.join(map(str, _CODES))}, and a name other than __metadata__",
                cure="Cast or rename it before writing.",
            )
    names = sorted(tensors, key=lambda name: (-_ORDER.index(_CODES[tensors[name].dtype]), name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins, end = {}, 0
    for name in names:
        begins[name] = begin = end
        end += tensors[name].nbytes
        entries[name] = {
            "dtype": _CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _LENGTH_BYTES)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return header, {name: len(header) + begin for name, begin in begins.items()}


def _write_tensor(stream: BinaryIO, name: str, declared: LazyTensor) -> None:
    """Write one tensor's bytes, if it is what the header, which is already written, says of it.

    Its array ends with this function, so that no two are in memory.
    """
    array = declared.read()
    if array.shape != declared.shape or array.dtype != declared.dtype:
        raise broken(
            f"The tensor {shown(name)} must be read as it was declared",
            got=f"{array.dtype} {array.shape}",
            wanted=f"{declared.dtype} {declared.shape}",
            cure="Declare what `read` returns; if a file stands behind it, it changed meanwhile.",
        )
    # Bytes in C order, and no copy where the array is contiguous.
    stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
