"""Jobs are worked on ahead within a bound of memory; order and errors are kept."""

import threading

import pytest

from jaxtune.models import read_ahead
from jaxtune.models.read_ahead import Job, ReadAhead


def test_jobs_are_begun_while_their_results_fit(monkeypatch) -> None:
    monkeypatch.setattr(read_ahead, "AHEAD_BYTES", 10)
    begun = [threading.Event() for _ in range(5)]

    def job(number: int, nbytes: int) -> Job:
        return Job(nbytes=nbytes, read=lambda: begun[number].set() or number)

    sizes = [5, 5, 11, 1, 1]
    with ReadAhead([job(number, nbytes) for number, nbytes in enumerate(sizes)]) as source:
        assert begun[0].wait(5)
        assert begun[1].wait(5)
        assert source.take() == 0
        assert not begun[2].wait(0.2)  # it is large, and one still waits
        assert source.take() == 1
        assert begun[2].wait(5)
        assert not begun[3].wait(0.2)
        assert source.take() == 2
        assert begun[3].wait(5)
        assert begun[4].wait(5)
        assert [source.take(), source.take()] == [3, 4]
        with pytest.raises(ValueError, match="every job's result has been taken"):
            source.take()


def test_several_jobs_are_in_work_at_a_time_and_come_in_order() -> None:
    together = threading.Barrier(read_ahead.THREADS)

    def read(number: int) -> int:
        together.wait(5)
        return number

    count = 2 * read_ahead.THREADS
    jobs = [Job(nbytes=1, read=lambda number=number: read(number)) for number in range(count)]
    with ReadAhead(jobs) as source:
        assert [source.take() for _ in jobs] == list(range(count))


def test_an_error_is_raised_where_its_result_would_be_taken() -> None:
    def broken() -> None:
        raise OSError("the disk is gone")

    jobs = [Job(nbytes=1, read=lambda: "first"), Job(nbytes=1, read=broken)]
    with ReadAhead(jobs) as source:
        assert source.take() == "first"
        with pytest.raises(OSError, match="the disk is gone"):
            source.take()
