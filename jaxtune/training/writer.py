"""Writing beside the run: in a thread of its own, one thing at a time."""

import concurrent.futures
from collections.abc import Callable
from typing import Any


class Writer:
    """Runs one write at a time; what fails in it is raised where its end is awaited."""

    def __init__(self) -> None:
        """No thread is started yet."""
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[Any] | None = None

    def start(self, write: Callable[[], Any]) -> None:
        """Start a write, after the one before it has ended.

        Args:
          write: Must not read what the run goes on changing.
        """
        self.wait()
        self._pending = self._pool.submit(write)

    def check(self) -> None:
        """Raise what the last write raised, if it has ended; never waits."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written, and raise what the write raised."""
        if self._pending is None:
            return
        # An interrupt in here forgets nothing: the next wait waits for the same write.
        concurrent.futures.wait([self._pending])
        ended, self._pending = self._pending, None
        ended.result()

    def close(self) -> None:
        """Wait for the write in flight, whose own error is not raised, and end the thread."""
        self._pool.shutdown(wait=True)
