"""Interrupts wait while arrays change hands.

A step gives its input arrays' memory away; until its outputs are bound to the model, the model
holds nothing. An interrupt in between would leave it unusable, so it is held back and raised
right after.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold SIGINT back inside the block and deliver it at the end; a second one is immediate.

    Outside the main thread Python delivers no signals, and nothing is done; nor is anything where
    the handler is not Python's (an embedding program's), since it could not be put back.

    Yields:
      Nothing.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or previous is None:
        yield
        return
    held: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held:
            # Whatever it is: a function, the system's default (the process ends), or nothing.
            signal.raise_signal(held[0])
