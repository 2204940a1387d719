"""Reading the next tensor while the device works on this one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any


class ReadAhead:
    """Results of jobs in their order, each begun while its predecessor is in use.

    Two results are in memory at a time. Use it in a `with` statement.
    """

    def __init__(self, jobs: Sequence[Callable[[], Any]]) -> None:
        """Begin the first job."""
        self._jobs = list(jobs)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[Any] | None = None
        self._begin()

    def _begin(self) -> None:
        self._pending = self._thread.submit(self._jobs.pop(0)) if self._jobs else None

    def take(self) -> Any:
        """The next job's result; an error of the job is raised here."""
        if self._pending is None:
            raise ValueError("every job's result has been taken; there is none left")
        result = self._pending.result()
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
