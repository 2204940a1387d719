"""Reading what comes next while the device works on this."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

THREADS = 8  # one alone neither fills the bus nor keeps a fast disk busy
AHEAD_BYTES = 128 * 2**20  # a result larger than that waits until it is the only one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Something to read.

    Attributes:
      nbytes: About as much memory as it takes.
      read: Reads it; called in a thread.
    """

    nbytes: int
    read: Callable[[], Any]


class ReadAhead:
    """Results of jobs in their order; some are worked on in threads before they are asked for.

    The results that wait and the jobs in work take `AHEAD_BYTES` together, or are one alone. Use it
    in a `with` statement.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        """Begin the first jobs."""
        self._jobs = collections.deque(jobs)
        self._begun: collections.deque[tuple[int, Future[Any]]] = collections.deque()
        self._held = 0
        self._threads = ThreadPoolExecutor(max_workers=THREADS)
        self._begin()

    def _begin(self) -> None:
        while self._jobs and (not self._begun or self._held + self._jobs[0].nbytes <= AHEAD_BYTES):
            job = self._jobs.popleft()
            self._held += job.nbytes
            self._begun.append((job.nbytes, self._threads.submit(job.read)))

    def take(self) -> Any:
        """The next job's result; an error of the job is raised here."""
        if not self._begun:
            raise ValueError("every job's result has been taken; there is none left")
        nbytes, future = self._begun.popleft()
        result = future.result()
        self._held -= nbytes
        self._begin()
        return result

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
