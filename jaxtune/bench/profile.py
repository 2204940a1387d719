"""A few steps under JAX's profiler."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STEPS = 3
TRACE_FILE = "perfetto_trace.json.gz"


def profile_steps(step: Callable[[], object], folder: Path) -> list[dict[str, Any]]:
    """Run three steps under the profiler.

    Args:
      step: Makes one and waits for it.
      folder: The trace stays there, for ui.perfetto.dev and xprof.

    Returns:
      The trace's events.

    Raises:
      FileNotFoundError: The profiler wrote no trace.
    """
    options = jax.profiler.ProfileOptions()
    # The host's events would crowd the kernels out of a trace of limited length.
    options.python_tracer_level = 0
    options.host_tracer_level = 1
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        for _ in range(STEPS):
            step()
    return read_events(folder)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of the newest trace in a folder.

    Raises:
      FileNotFoundError: There is none.
    """
    traces = sorted(folder.rglob(TRACE_FILE), key=lambda file: file.stat().st_mtime)
    if not traces:
        raise FileNotFoundError(
            f"a profile must leave {TRACE_FILE}; {folder} holds none. Is another profile running?"
        )
    with gzip.open(traces[-1], "rt", encoding="utf-8") as file:
        return json.load(file)["traceEvents"]
