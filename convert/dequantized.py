"""The values of 4-bit weights, as bitsandbytes computes them, and a checkpoint that shows them."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from convert.checkpoint import Checkpoint
from convert.header import TensorInfo
from convert.quantized import (
    QuantizedInfo,
    QuantizedTensor,
    part_names,
    quantized_infos,
    read_quantized,
)
from convert.rounding import cast

_F32 = np.dtype(np.float32)
# Elements at a time; a multiple of every block, so that none is parted.
_SPAN = 2**20


def dequantize(tensor: QuantizedTensor, dtype: np.dtype) -> np.ndarray:
    """Compute a 4-bit weight's elements, bit-equal to bitsandbytes' `dequantize_4bit`.

    w[i] = table[code[i]] * absmax[i // block] in float32, cast once; absmax as `block_scales`. The
    second zero of fp4, code 8, is 0 as in its table and most of bitsandbytes' kernels; one has -0.

    Args:
      tensor: The weight; beside it and the result less than 32 MiB are in use.
      dtype: Of the result: bfloat16, float16 or float32.

    Returns:
      [out, in]; in float16 infinite beyond its largest finite number.

    Source: https://github.com/bitsandbytes-foundation/bitsandbytes
      `backends/default/ops.py` @ 0.50.2 (`_dequantize_4bit_compute`).
    """
    count, block = math.prod(tensor.info.shape), tensor.info.block
    high, low = np.repeat(tensor.table, 16), np.tile(tensor.table, 16)
    pairs = np.stack([high, low], axis=1).view(np.uint64)[:, 0]  # [256]: two float32 for each byte
    scales = block_scales(tensor)
    weight = np.empty(count, dtype)
    for begin in range(0, count, _SPAN):
        end = min(begin + _SPAN, count)
        values = pairs[tensor.codes[begin // 2 : (end + 1) // 2]].view(_F32)[: end - begin]
        values *= np.repeat(scales[begin // block : -(-end // block)], block)[: end - begin]
        weight[begin:end] = cast(values, dtype)
    return weight.reshape(tensor.info.shape)


def block_scales(tensor: QuantizedTensor) -> np.ndarray:
    """Compute the scale of each block of a 4-bit weight.

    absmax[b] = nested_table[code[b]] * nested_absmax[b // nested_block] + offset, each step rounded
    to float32.

    Args:
      tensor: The weight.

    Returns:
      float32 [ceil(n/block)]; `tensor.absmax` itself without double quantisation.
    """
    block = tensor.info.nested_block
    if block is None or tensor.nested_absmax is None or tensor.nested_table is None:
        return tensor.absmax
    scales = tensor.nested_table[tensor.absmax]
    scales *= np.repeat(tensor.nested_absmax, block)[: scales.size]
    scales += tensor.offset
    return scales


class DequantizedCheckpoint:
    """A checkpoint as if it had not been quantised: each 4-bit weight is one float32 tensor.

    The parts of 4-bit weights are not among its names. A checkpoint without any is as it was.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Look for 4-bit weights.

        Args:
          checkpoint: Open, and closed by who opened it.

        Raises:
          CheckpointError: as `quantized_infos`.
        """
        self._checkpoint = checkpoint
        self._quantized = quantized_infos(checkpoint)
        parts = {part for info in self._quantized.values() for part in part_names(info)}
        hidden = parts - self._quantized.keys()
        self._names = tuple(name for name in checkpoint.names if name not in hidden)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, sorted."""
        return self._names

    @property
    def quantized(self) -> Mapping[str, QuantizedInfo]:
        """What is known of each 4-bit weight, by its name."""
        return MappingProxyType(self._quantized)

    def info(self, name: str) -> TensorInfo:
        """Look up shape, dtype and file of a tensor without reading it.

        Args:
          name: One of `names`.

        Returns:
          What the header says; of a 4-bit weight its own shape, and float32.

        Raises:
          CheckpointError: there is no such tensor.
        """
        held = self._checkpoint.info(name)
        if name not in self._quantized:
            return held
        return dataclasses.replace(held, shape=self._quantized[name].shape, dtype=_F32)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, and compute it if it is a 4-bit weight.

        Args:
          name: One of `names`.

        Returns:
          An array of `info(name)`'s shape and dtype.

        Raises:
          CheckpointError: as `Checkpoint.read` and `read_quantized`.
        """
        if name not in self._quantized:
            return self._checkpoint.read(name)
        return dequantize(read_quantized(self._checkpoint, self._quantized[name]), _F32)
