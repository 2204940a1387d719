"""Compiling a step once, and timing it."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxtune.bench.age import process_age
from jaxtune.bench.memory import Memory, allocated, nvidia_smi_bytes
from jaxtune.bench.setup import Setup
from jaxtune.memory import planned
from jaxtune.training.sizes import nbytes, nbytes_here

WARM_UP = 3
# https://docs.jax.dev/en/latest/jax.monitoring.html; the names stand in jax._src.
COMPILED = "/jax/core/compile/backend_compile_duration"
FROM_CACHE = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was seen of the step.

    Attributes:
      trace_seconds: From Python to the compiler's input.
      compile_seconds: Of the compiler, or of reading its result.
      from_cache: The program came from a persistent compile cache.
      start_to_first_step: Seconds from the start of the process; None if it cannot be told.
      step_ms: Each timed step, in order.
      compilations: Programs compiled during the timed steps; 0 is right. None: JAX tells not.
      donated: Arrays of adapter and optimizer whose memory the first step took over.
      donatable: How many there are.
      loss: After the last step.
      memory: Peaks.
    """

    trace_seconds: float
    compile_seconds: float
    from_cache: bool
    start_to_first_step: float | None
    step_ms: tuple[float, ...]
    compilations: int | None
    donated: int
    donatable: int
    loss: float
    memory: Memory


def compile_step(setup: Setup) -> tuple[Any, dict[str, Any]]:
    """Compile the step for its arguments.

    Returns:
      (the compiled step, fields of `Measured` about it); `heard` tells whether JAX announced it.
    """
    with heard() as events:
        start = time.perf_counter()
        # pyrefly: ignore[missing-attribute]  a step is a jitted function, which can be lowered.
        lowered = setup.step.lower(setup.trainable, setup.opt_state, setup.frozen, setup.batch)
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()
    return compiled, {
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "from_cache": FROM_CACHE in events,
        "heard": COMPILED in events,
    }


def advance(compiled: Any, setup: Setup) -> dict[str, jax.Array]:
    """Make one step, and wait for it; the metrics."""
    setup.trainable, setup.opt_state, metrics = compiled(
        setup.trainable, setup.opt_state, setup.frozen, setup.batch
    )
    jax.block_until_ready((setup.trainable, setup.opt_state, metrics))
    return metrics


def measure(setup: Setup, steps: int) -> tuple[Measured, Callable[[], object], str]:
    """Compile, warm up and time.

    Args:
      setup: Its first two arguments change hands.
      steps: Timed ones.

    Returns:
      (what was seen, one more step, the compiled program's text).
    """
    device = jax.devices()[0]
    compiled, facts = compile_step(setup)
    announced = facts.pop("heard")
    before = allocated(device, "peak_bytes_in_use")
    consumed = jax.tree.leaves((setup.trainable, setup.opt_state))
    metrics = advance(compiled, setup)
    since_start = process_age()
    donated = sum(leaf.is_deleted() for leaf in consumed)
    for _ in range(WARM_UP - 1):
        advance(compiled, setup)
    times = []
    with heard() as events:
        for _ in range(steps):
            start = time.perf_counter()
            metrics = advance(compiled, setup)
            times.append(1e3 * (time.perf_counter() - start))
    measured = Measured(
        **facts,
        start_to_first_step=since_start,
        step_ms=tuple(times),
        compilations=events.count(COMPILED) if announced else None,
        donated=donated,
        donatable=len(consumed),
        loss=float(np.asarray(metrics["loss"])),
        memory=Memory(
            frozen=nbytes_here(setup.frozen),
            frozen_on_host=nbytes(setup.frozen) - nbytes_here(setup.frozen),
            adapter=nbytes(setup.trainable),
            optimizer=nbytes(setup.opt_state),
            compiler=planned(compiled),
            allocator_before=before,
            allocator=allocated(device, "peak_bytes_in_use"),
            in_use=allocated(device, "bytes_in_use"),
            nvidia_smi=nvidia_smi_bytes(device),
        ),
    )
    return measured, lambda: advance(compiled, setup), compiled.as_text() or ""


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """What JAX announces meanwhile: one entry a program compiled, one a hit of the cache."""
    events: list[str] = []

    def on_event(event: str, **_: Any) -> None:
        events.append(event)

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        del duration_secs
        events.append(event)

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)
