"""The safetensors header, checked against the file's size before anything is allocated.

A file is: 8 bytes little-endian header length N, N bytes of JSON {name: {dtype, shape,
data_offsets}}, then the tensors' bytes, which the offsets must cover without gap or overlap.
Source: https://github.com/huggingface/safetensors#format
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import ml_dtypes
import numpy as np

from convert.errors import CheckpointError, broken, shown
from convert.json_object import MAX_BYTES, parse_json_object

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 32
_MAX_EXTENT = 2**40
_CURE = "The file is cut off or damaged: delete it and download or save it again."


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """What a header says about one tensor; nothing of the tensor itself is read.

    Attributes:
      shape: Extents, as stored.
      dtype: numpy's dtype; bfloat16 is `ml_dtypes.bfloat16`.
      file: The file that holds the tensor.
      begin: Where its bytes begin there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    file: Path
    begin: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Args:
      file: The file; links are followed, since the hub's cache is made of them.

    Returns:
      One entry per tensor, in the header's order.

    Raises:
      CheckpointError: no such file, header longer than the file, no JSON object, an unknown dtype,
        offsets outside the file, or a shape whose bytes are not the offsets' bytes.
    """
    if not file.is_file():
        raise broken(
            f"{file} must exist",
            got="no such file",
            wanted="a safetensors file",
            cure="Download or save the folder again, all of it.",
        )
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        limit = min(MAX_BYTES, size - _LENGTH_BYTES)
        if length > limit or limit < 0:
            raise broken(
                f"The header of {file} must fit in the file",
                got=f"a header of {length} bytes in a file of {size} bytes",
                wanted=f"at most {max(limit, 0)} bytes",
                cure=_CURE,
            )
        entries = parse_json_object(stream.read(length), f"The header of {file}")
    entries.pop("__metadata__", None)
    data = _LENGTH_BYTES + length
    spans = {name: _check_entry(file, data, name, entry) for name, entry in entries.items()}
    _check_cover(file, [span for _, span in spans.values()], size - data)
    return {name: info for name, (info, _) in spans.items()}


def _check_entry(
    file: Path, data: int, name: str, entry: object
) -> tuple[TensorInfo, tuple[int, int]]:
    """Check one header entry by itself; return it with its span of the data, which begins there."""
    where = f"The header entry {shown(name)} of {file}"
    if not isinstance(entry, dict):
        raise broken(f"{where} must be an object", got=shown(entry), wanted="{...}", cure=_CURE)
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise broken(
            f"{where} must have a dtype that numpy and ml_dtypes can hold",
            got=shown(code),
            wanted=f"one of {', '.join(DTYPES)}",
            cure="Use an unquantised (bfloat16, float16, float32) copy of this checkpoint.",
        )
    if (
        not _are_counts(shape)
        or len(shape) > _MAX_DIMENSIONS
        or max(shape, default=0) > _MAX_EXTENT
    ):
        raise broken(
            f"{where} must have a shape", got=shown(shape), wanted="a list of extents", cure=_CURE
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(
            f"{where} must have data_offsets", got=shown(offsets), wanted="[begin, end]", cure=_CURE
        )
    begin, end = offsets
    wanted = math.prod(shape) * dtype.itemsize
    if end - begin != wanted:
        raise broken(
            f"{where} must span the bytes of its shape",
            got=f"{end - begin} bytes for {dtype} {shape}",
            wanted=f"{wanted} bytes",
            cure=_CURE,
        )
    info = TensorInfo(shape=tuple(shape), dtype=dtype, file=file, begin=data + begin)
    return info, (begin, end)


def _are_counts(value: object) -> TypeGuard[list[int]]:
    """True for a list of integers >= 0; JSON's true and false are not integers here."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_cover(file: Path, spans: list[tuple[int, int]], size: int) -> None:
    """Check that the spans cover the file's data exactly: no gap, no overlap, no missing end."""
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise CheckpointError(
                f"The tensors of {file} must follow one another; got one at byte {begin} of the "
                f"data; wanted byte {reached}. {_CURE}"
            )
        reached = end
    if reached != size:
        raise broken(
            f"The tensors of {file} must fill the file",
            got=f"{size} bytes of data",
            wanted=f"{reached} bytes",
            cure=_CURE,
        )
