"""What the processes of a run must have alike, looked at before its first step.

Each of them computes the same plan by itself; one that sees other rows, another checkpoint or less
memory would run another program, and the others would wait for it.
"""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxtune import processes
from jaxtune.training.checkpoint import PREFIX, folder_of
from jaxtune.training.config import SFTConfig
from jaxtune.training.manifest import Identity
from jaxtune.training.resume import find_checkpoint
from jaxtune.training.whole_folder import clear_leftovers

_UNIT = 2**20  # bytes, so that a count of them fits 32 bits


def check_all_take_part(mesh: Mesh | None) -> None:
    """Raise unless the devices of every process take part.

    Args:
      mesh: Of the model.

    Raises:
      ValueError: The run has several processes, and some would train alone or not at all.
    """
    wanted = set(range(processes.count()))
    if len(wanted) == 1:
        return
    got = set() if mesh is None else {device.process_index for device in mesh.devices.flat}
    if got != wanted:
        raise ValueError(
            f"a run of {len(wanted)} processes needs a mesh over the devices of all; got "
            f"{'none' if mesh is None else f'one over those of processes {sorted(got)}'}. Pass "
            "mesh='auto', or sizes whose product is jax.device_count()."
        )


def prepare_output(args: SFTConfig) -> None:
    """Make the folder of a run that saves, without what a killed run left in it.

    Args:
      args: Of the run.
    """
    if args.saves == "no":
        return
    folder = folder_of(args)
    folder.mkdir(parents=True, exist_ok=True)
    if processes.is_first():
        clear_leftovers(folder, PREFIX)
    processes.wait_for_all("the folder is ready")


def agreed_checkpoint(asked: Any, output_dir: Any) -> Path | None:
    """The checkpoint that every process resumes from, as `find_checkpoint` finds it.

    Args:
      asked: As there.
      output_dir: Likewise.

    Returns:
      The folder, or None.

    Raises:
      ValueError: There is none, or the processes find different ones.
    """
    if asked is None or asked is False or processes.count() == 1:
        return find_checkpoint(asked, output_dir)
    found, error = None, None
    try:
        found = find_checkpoint(asked, output_dir)
    except ValueError as missing:
        error = missing
    held = processes.gathered(_number("" if found is None else found.name))
    if len(set(held.tolist())) > 1:
        raise ValueError(
            "every process must find the same checkpoint; this one found "
            f"{found if error is None else 'none'}, and others something else. Give `output_dir` "
            "on a file system that all hosts share."
        ) from error
    if error is not None:
        raise error
    return found


def check_rows_agree(identity: Callable[[], Identity], steps: int, mesh: Mesh | None) -> None:
    """Raise unless all processes have the same rows, options, number of steps and mesh.

    Args:
      identity: What this one's order of rows depends on; called only if there are others, since it
        reads all rows.
      steps: Of the run.
      mesh: Of the model.

    Raises:
      ValueError: They differ.
    """
    if processes.count() == 1:
        return
    mine, sizes = identity(), None if mesh is None else dict(mesh.shape)
    held = processes.gathered(_number(f"{mine} {steps} {sizes}"))
    if len(set(held.tolist())) > 1:
        raise ValueError(
            "every process must train on the same rows with the same options; this one has "
            f"{mine.rows:,} rows, {steps:,} steps and the mesh {sizes}, and another has other "
            "ones. Give all the same data set and options; each takes its own part of a step by "
            "itself."
        )


def agreed_bytes(free: int | None) -> int | None:
    """The least of what the processes have free; None where any knows no limit.

    Args:
      free: Bytes of this one.
    """
    if processes.count() == 1:
        return free
    least = int(processes.gathered(np.int32(-1 if free is None else free // _UNIT)).min())
    return None if least < 0 else least * _UNIT


def process_lines() -> Iterator[str]:
    """What a person should know of a run of several processes."""
    if processes.count() > 1:
        yield (
            f"  hosts    {processes.count()} processes; if one ends, the others end within the "
            "coordinator's time-out"
        )
        yield "           (then start all again and resume from the last checkpoint)"


def _number(text: str) -> np.uint32:
    """A number that two texts seldom share."""
    return np.uint32(zlib.crc32(text.encode()))
