"""4-bit weights in bitsandbytes' form, not yet computed: the tensors that stand for each in a file.

Source: https://github.com/bitsandbytes-foundation/bitsandbytes `functional.py` @ 0.50.2
(`QuantState.as_dict`).
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from convert.checkpoint import Checkpoint
from convert.quant_state import QuantState, write_quant_state
from convert.quantized import QuantizedInfo, QuantizedTensor, part_names
from convert.quantized_parts import layout
from convert.stream import LazyTensor

_U8 = np.dtype(np.uint8)


def new_info(
    name: str, shape: tuple[int, ...], dtype: np.dtype, *, block: int, nested_block: int | None
) -> QuantizedInfo:
    """Describe an nf4 weight that is not in a file yet.

    Args:
      name: The weight's.
      shape: Its own, [out, in].
      dtype: Its values' before they are quantised.
      block: Weights for each absmax.
      nested_block: Absmax values for each nested absmax; None without double quantisation.

    Returns:
      What `quantized_infos` will say of it.
    """
    info = QuantizedInfo(
        name=name,
        shape=shape,
        dtype=dtype,
        quant_type="nf4",
        block=block,
        nested_block=nested_block,
        nbytes=0,
    )
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in _declared(info).values())
    return dataclasses.replace(info, nbytes=size)


def computed_parts(
    info: QuantizedInfo, compute: Callable[[], QuantizedTensor]
) -> dict[str, LazyTensor]:
    """List the tensors of a weight that is computed when the first of them is read.

    It is let go when the last one was: a file that is written in this order costs one computation
    and the memory of one weight.

    Args:
      info: Of the weight.
      compute: Gives its parts, as `info` says they are.

    Returns:
      {name: tensor}, the codes first, the JSON last.
    """
    weight = _Weight(compute)
    return {
        name: LazyTensor(shape=shape, dtype=dtype, read=functools.partial(weight.take, name))
        for name, (shape, dtype) in _declared(info).items()
    }


def stored_parts(checkpoint: Checkpoint, info: QuantizedInfo) -> dict[str, LazyTensor]:
    """List the tensors of a weight as a checkpoint holds them, byte for byte.

    Args:
      checkpoint: Open as long as they are read.
      info: One of its `quantized_infos`.

    Returns:
      {name: tensor}, the codes first, the JSON last; codes that are stored under another dtype
      become uint8, of the same bytes.
    """

    def read_codes() -> np.ndarray:
        return checkpoint.read(info.name).reshape(-1).view(np.uint8)[:, None]

    codes = LazyTensor(shape=(-(-math.prod(info.shape) // 2), 1), dtype=_U8, read=read_codes)
    parts = {info.name: codes}
    for name in part_names(info)[1:]:
        held = checkpoint.info(name)
        read = functools.partial(checkpoint.read, name)
        parts[name] = LazyTensor(shape=held.shape, dtype=held.dtype, read=read)
    return parts


class _Weight:
    """One weight's arrays by their names, computed together, each given away once."""

    def __init__(self, compute: Callable[[], QuantizedTensor]) -> None:
        self._compute = compute
        self._held: dict[str, np.ndarray] = {}

    def take(self, name: str) -> np.ndarray:
        if name not in self._held:
            self._held = _arrays(self._compute())
        return self._held.pop(name)


def _declared(info: QuantizedInfo) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{name: shape and dtype} of every tensor of a weight."""
    state = _state(info, np.float32(0))
    beside = [((length,), dtype) for dtype, length in layout(state).values()]
    codes = ((-(-math.prod(info.shape) // 2), 1), _U8)
    text = ((len(write_quant_state(state)),), _U8)
    return dict(zip(part_names(info), [codes, *beside, text], strict=True))


def _arrays(tensor: QuantizedTensor) -> dict[str, np.ndarray]:
    """{name: array} of every tensor of a weight."""
    text = write_quant_state(_state(tensor.info, tensor.offset))
    beside = [tensor.absmax, tensor.table]
    if tensor.nested_absmax is not None and tensor.nested_table is not None:
        beside += [tensor.nested_absmax, tensor.nested_table]
    arrays = [tensor.codes[:, None], *beside, np.frombuffer(text, np.uint8)]
    return dict(zip(part_names(tensor.info), arrays, strict=True))


def _state(info: QuantizedInfo, offset: np.float32 | None) -> QuantState:
    """What the JSON of a weight says."""
    return QuantState(
        shape=info.shape,
        dtype=info.dtype,
        quant_type=info.quant_type,
        block=info.block,
        nested_block=info.nested_block,
        offset=None if info.nested_block is None else offset,
    )
