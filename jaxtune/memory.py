"""Memory of the device, with the names that notebooks print."""

import dataclasses
import resource
import sys
from pathlib import Path
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryStats:
    """Memory of JAX's default device, bytes; of this process where the device is the host.

    Attributes:
      name: Of the device.
      total_memory: What JAX may take; its pool, not the whole card.
      memory_reserved: Held by arrays now.
      max_memory_reserved: Most that arrays have held since the process began. What nvidia-smi shows
        is the pool that JAX takes in advance.
    """

    name: str
    total_memory: int
    memory_reserved: int
    max_memory_reserved: int

    def lines(self, before: "MemoryStats | None" = None) -> list[str]:
        """The lines of the notebooks: without `before` those at the start, else those at the end.

        Args:
          before: As it was before training.

        Returns:
          One text a line, GB as 2^30 bytes.
        """
        total = self.total_memory / GIB
        if before is None:
            return [
                f"GPU = {self.name}. Max memory = {total:.3f} GB.",
                f"{self.memory_reserved / GIB:.3f} GB of memory reserved.",
            ]
        peak = self.max_memory_reserved / GIB
        training = peak - before.max_memory_reserved / GIB
        return [
            f"Peak reserved memory = {peak:.3f} GB.",
            f"Peak reserved memory for training = {training:.3f} GB.",
            f"Peak reserved memory % of max memory = {100 * peak / total:.3f} %.",
            f"Peak reserved memory for training % of max memory = {100 * training / total:.3f} %.",
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiler:
    """What the compiler planned for the step, bytes.

    Attributes:
      arguments: Weights, adapter, optimizer state and batch.
      outputs: New adapter and state, metrics.
      aliased: Outputs that live in arguments' memory.
      temporaries: Everything in between.
      host_temporaries: The same in host memory (plan "offload").
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    host_temporaries: int

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: arguments + outputs - aliased + temporaries."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


def planned(compiled: Any) -> Compiler | None:
    """The compiler's plan of a compiled step; None where a platform tells nothing."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return Compiler(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        host_temporaries=stats.host_temp_size_in_bytes,
    )


def memory_stats() -> MemoryStats:
    """Memory of JAX's default device, now and at its peak."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats is None:
        return _of_the_host(device.device_kind)
    return MemoryStats(
        name=device.device_kind,
        total_memory=stats["bytes_limit"],
        memory_reserved=stats["bytes_in_use"],
        max_memory_reserved=stats["peak_bytes_in_use"],
    )


def peak_memory() -> int | None:
    """Most bytes that arrays have held on JAX's default device; None where that is the host."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats["peak_bytes_in_use"]


def _of_the_host(name: str) -> MemoryStats:
    """Resident memory of this process; its arrays are in it."""
    # Linux counts it in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return MemoryStats(
        name=name,
        total_memory=_field("/proc/meminfo", "MemTotal") or peak,
        memory_reserved=min(_field("/proc/self/status", "VmRSS") or peak, peak),
        max_memory_reserved=peak,
    )


def _field(file: str, name: str) -> int | None:
    """Bytes of a line such as "VmRSS: 12 kB"; None where there is no such file."""
    try:
        text = Path(file).read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
