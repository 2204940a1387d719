"""Peak memory, as three different witnesses tell it."""

import dataclasses
import os
import shutil
import subprocess

import jax

from jaxtune.memory import Compiler

MIB = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What is held for good, and the three witnesses; bytes, None where a witness is absent.

    Attributes:
      frozen: Of the frozen weights: 4-bit stacks, embedding, head and norms.
      frozen_on_host: Of those in host memory (plan "least"), which are not in the former.
      adapter: Of what is trained.
      optimizer: Of the optimizer's state.
      compiler: Its plan.
      allocator_before: JAX's allocator's peak before the first step, while weights were drawn.
      allocator: Its peak after the last step; the steps' own only where it is over the former.
      in_use: What it holds after the last step.
      nvidia_smi: Used by this process, or of its GPU, the driver's own share included; all that the
        allocator ever took, which is a whole pool where JAX takes it in advance.
    """

    frozen: int
    frozen_on_host: int
    adapter: int
    optimizer: int
    compiler: Compiler | None
    allocator_before: int | None
    allocator: int | None
    in_use: int | None
    nvidia_smi: int | None


def allocated(device: jax.Device, key: str) -> int | None:
    """A number of the allocator, such as "peak_bytes_in_use"; None where it has none."""
    return (device.memory_stats() or {}).get(key)


def nvidia_smi_bytes(device: jax.Device) -> int | None:
    """What nvidia-smi sees in use by this process; None without nvidia-smi or on another device.

    In a container nvidia-smi may not know the process: then all that is used of the GPU whose
    number the device has (wrong where CUDA_VISIBLE_DEVICES renumbers them).
    """
    if device.platform != "gpu":
        return None
    mine = used_by(_query("--query-compute-apps=pid,used_memory"), os.getpid())
    if mine is not None:
        return mine
    number = device.local_hardware_id
    return used_by(_query("--query-gpu=index,memory.used"), device.id if number is None else number)


def used_by(rows: str, number: int) -> int | None:
    """Bytes beside a number in rows of "number, MiB"; None if no row has it.

    Args:
      rows: Of nvidia-smi, without header and units.
      number: Of the process, or of the GPU.

    Returns:
      The sum over its rows.
    """
    found = [row.split(",") for row in rows.splitlines() if row.count(",") == 1]
    values = [int(used) for key, used in found if key.strip() == str(number) and _number(used)]
    return sum(values) * MIB if values else None


def _number(text: str) -> bool:
    return text.strip().isdecimal()


def _query(what: str) -> str:
    """The answer of nvidia-smi; empty if there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, what, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
