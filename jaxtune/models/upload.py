"""Tensors of a checkpoint on their way to the device: in pieces, through memory that is reused."""

import math
import mmap
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from convert import Checkpoint, QuantizedInfo, TensorInfo, dequantize, read_quantized
from jaxtune.models.placement import put
from jaxtune.models.quantized import from_file
from jaxtune.models.sharding import part_place
from pallas_kernels import NF4
from pallas_kernels.dispatch import current_device

PIECE_BYTES = 16 * 2**20


class Uploads:
    """Reads of one checkpoint that end on the device; several threads may ask for one at a time.

    Fresh host memory costs a page fault for each 4 KiB, more than the read itself from a cached
    file. So a dense tensor goes through one buffer a thread, a piece at a time.
    """

    def __init__(self, checkpoint: Checkpoint, mesh: Mesh | None) -> None:
        """Take an open checkpoint; arrays go to the mesh, or to JAX's default device."""
        self._checkpoint, self._mesh = checkpoint, mesh
        self._local = threading.local()
        platform = current_device().platform if mesh is None else mesh.devices.flat[0].platform
        self._borrows = platform == "cpu"

    def rows(self, name: str, start: int, stop: int) -> jax.Array:
        """Rows of a dense tensor, [stop - start, ...] in the file's dtype, on the device.

        Over a mesh each device gets some columns, if they divide.
        """
        info = self._checkpoint.info(name)
        needed = bytes_of(info) // max(info.shape[0], 1) * (stop - start)
        # On a CPU JAX would go on using the memory that it is given, whatever `may_alias` says.
        buffer = _pages(needed) if self._borrows else self._buffer(needed)
        rows = self._checkpoint.read_rows(name, start, stop, buffer)
        # The buffer is written again: the device's copy must have been made.
        return put(rows, part_place(rows.shape, self._mesh)).block_until_ready()

    def four_bits(self, info: QuantizedInfo) -> NF4:
        """A 4-bit weight as a stack of one on the device, its codes in the file's order."""
        return jax.block_until_ready(from_file(read_quantized(self._checkpoint, info), self._mesh))

    def dequantized(self, info: QuantizedInfo) -> jax.Array:
        """The dense values of a 4-bit weight, of the dtype that bitsandbytes gives."""
        values = dequantize(read_quantized(self._checkpoint, info), info.dtype)
        return put(values, part_place(values.shape, self._mesh)).block_until_ready()

    def _buffer(self, nbytes: int) -> np.ndarray:
        held: np.ndarray | None = getattr(self._local, "buffer", None)
        if held is None or held.nbytes < nbytes:
            held = self._local.buffer = _pages(max(nbytes, PIECE_BYTES))
        return held


def _pages(nbytes: int) -> np.ndarray:
    """Memory that goes back to the system at once, which a thread's heap would keep."""
    return np.frombuffer(mmap.mmap(-1, max(nbytes, 1)), np.uint8)


def pieces(info: TensorInfo) -> Iterator[tuple[int, int]]:
    """Split a tensor into even ranges of rows, of `PIECE_BYTES` at most or of one row."""
    rows = max(info.shape[0], 1)
    most = max(PIECE_BYTES * rows // max(bytes_of(info), 1), 1)
    step = -(-rows // -(-rows // most))
    return ((start, min(start + step, info.shape[0])) for start in range(0, rows, step))


def bytes_of(info: TensorInfo) -> int:
    """Bytes of a tensor in its file."""
    return math.prod(info.shape) * info.dtype.itemsize
