"""The arrays of a checkpoint that no other file of it holds; the one file that imports Orbax."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from jaxtune import processes


def write_tree(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name; returns when they are in the files.

    Args:
      folder: Created; must not exist.
      arrays: Of any dtype that JAX has. Those without elements, which Orbax refuses, are left out.
    """
    held = {name: array for name, array in arrays.items() if array.size}
    with _checkpointer() as checkpointer:
        checkpointer.save(folder.resolve(), args=ocp.args.StandardSave(held))


def read_tree(folder: Path, wanted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Read the arrays back, bit for bit.

    Args:
      folder: From `write_tree`.
      wanted: An array of the right shape and dtype for each name; their values do not count.

    Returns:
      The arrays, in host memory.
    """
    held = {name: array for name, array in wanted.items() if array.size}
    with _checkpointer() as checkpointer:
        found = checkpointer.restore(folder.resolve(), args=ocp.args.StandardRestore(held))
    return {**wanted, **{name: np.asarray(found[name]) for name in held}}


def _checkpointer() -> ocp.Checkpointer:
    """Orbax for this process alone: its arrays are whole, and the others wait for nothing."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=processes.number(),
        active_processes={processes.number()},
        barrier_sync_key_prefix=f"process {processes.number()}",
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
