"""Interrupts wait while arrays change hands; SIGTERM is one of them.

A step gives its input arrays' memory away; until its outputs are bound to the model, the model
holds nothing. An interrupt in between would leave it unusable, so it is held back and raised
right after.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back inside the block; a second one of a kind is immediate.

    Outside the main thread Python delivers no signals, and nothing is done; nor is anything where
    the handler is not Python's (an embedding program's), since it could not be put back.

    Yields:
      Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    previous = {number: handler for number, handler in found.items() if handler is not None}
    held: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        held.append(number)
        signal.signal(number, previous[signal.Signals(number)])

    try:
        for number in previous:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for number in held:
            # Whatever it is: a function, the system's default (the process ends), or nothing.
            signal.raise_signal(number)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit(143) inside the block, as SIGINT raises KeyboardInterrupt.

    Only where it would end the process without a word; a program's own handler stays.

    Yields:
      Nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
