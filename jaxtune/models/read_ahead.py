"""Reading the next tensor while the device works on this one."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

AHEAD_BYTES = 256 * 2**20  # a larger tensor waits for its turn: memory is the largest and this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Something to read into host memory.

    Attributes:
      nbytes: About as much as it takes there.
      read: Reads it.
    """

    nbytes: int
    read: Callable[[], Any]


class ReadAhead:
    """Results of jobs in their order, each begun while its predecessor is in use, if it is small.

    Use it in a `with` statement.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        """Begin the first job, if it is small."""
        self._jobs = list(jobs)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[Any] | None = None
        self._begin()

    def _begin(self) -> None:
        if self._jobs and self._jobs[0].nbytes <= AHEAD_BYTES:
            self._pending = self._thread.submit(self._jobs.pop(0).read)

    def take(self) -> Any:
        """The next job's result; an error of the job is raised here."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            result = pending.result()
        elif self._jobs:
            result = self._jobs.pop(0).read()
        else:
            raise ValueError("every job's result has been taken; there is none left")
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
        self._thread.shutdown(wait=True, cancel_futures=True)
