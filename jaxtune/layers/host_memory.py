"""Matrices in the host's pinned memory, of which a program on the device reads some rows."""

from typing import Any

import jax
from jax.experimental import compute_on
from jaxtyping import Array, Float, Int

HOST, DEVICE = jax.memory.Space.Host, jax.memory.Space.Device
# JAX 0.11 gives the newer function, and 0.10 the older one, the plain name.
_run_on: Any = getattr(compute_on, "compute_on2", compute_on.compute_on)


def in_host_memory(array: Any) -> bool:
    """Whether an array, traced or not, lies in host memory that is not the device's own."""
    return jax.typeof(array).memory_space == HOST


def rows_of(matrix: Float[Array, "V D"], index: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Some rows of a matrix, on the device; gathered by the host where the matrix lies there.

    Bytes moved are 4 B T of the index and those of the rows, never those of the matrix.

    Args:
      matrix: On the device or in host memory.
      index: Of the rows, on the device; clipped to [0, V).

    Returns:
      The rows, on the device.
    """
    if not in_host_memory(matrix):
        return matrix.at[index].get(mode="clip")
    gather = _run_on(_gather, compute_type="device_host", out_memory_spaces=HOST)
    return jax.device_put(gather(matrix, jax.device_put(index, HOST)), DEVICE)


def _gather(matrix: Array, index: Array) -> Array:
    return matrix.at[index].get(mode="clip")


def on_device(tree: Any) -> Any:
    """A tree whose every array is on the device; copies of those in host memory."""
    return jax.tree.map(lambda a: jax.device_put(a, DEVICE) if in_host_memory(a) else a, tree)
