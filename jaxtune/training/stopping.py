"""How a run of one process or several hears that it is to stop, and all stop at the same step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune import processes
from jaxtune.models.placement import put
from jaxtune.training.interrupt import SIGNALS, exit_on_sigterm

Check = Callable[[], None]


@contextlib.contextmanager
def stops_together(mesh: Mesh | None) -> Iterator[Check]:
    """Make SIGINT and SIGTERM end a run between two steps, the same two on every process.

    Alone, a process is interrupted at once: see `exit_on_sigterm`. One of several would leave the
    others waiting for it: it notes the signal, a sum over the mesh carries it to all of them, and
    it is raised where they read that sum, one step later. A second signal of a kind is immediate.

    Args:
      mesh: Over the devices of all processes.

    Yields:
      To be called once a step by each process; raises KeyboardInterrupt or SystemExit(143).
    """
    if mesh is None or processes.count() == 1:
        with exit_on_sigterm():
            yield lambda: None
        return
    with _noted_signals() as noted:
        yield _Agreed(mesh, noted).check


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The signals that came while the block runs; outside the main thread Python delivers none."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    previous = {number: handler for number, handler in found.items() if handler is not None}

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for number in previous:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Agreed:
    """Carries each process's signal to all of them, read a step late so that no device waits."""

    def __init__(self, mesh: Mesh, noted: list[int]) -> None:
        self._noted = noted
        self._shape = (mesh.size,)
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        whole = NamedSharding(mesh, PartitionSpec())
        self._most = jax.jit(jnp.max, out_shardings=whole)
        self._sent: jax.Array | None = None

    def check(self) -> None:
        """Send what was noted, and raise what had been sent a step before by any process."""
        before, mine = self._sent, max(self._noted, default=0)
        self._sent = self._most(put(np.full(self._shape, mine, np.int32), self._split))
        number = 0 if before is None else int(before)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number:
            raise SystemExit(128 + number)
