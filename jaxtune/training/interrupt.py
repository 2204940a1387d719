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

    Outside the main thread Python delivers no signals, and nothing is done.

    Yields:
      Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    previous = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held and callable(previous):
            previous(*held[0])
