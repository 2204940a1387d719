"""Small tensors are read one ahead, large ones in their turn; order and errors are kept."""

import threading

import pytest

from jaxtune.models import read_ahead
from jaxtune.models.read_ahead import Job, ReadAhead


def test_a_small_job_is_begun_while_its_predecessor_is_in_use(monkeypatch) -> None:
    monkeypatch.setattr(read_ahead, "AHEAD_BYTES", 10)
    begun = [threading.Event() for _ in range(4)]

    def job(number: int, nbytes: int) -> Job:
        return Job(nbytes=nbytes, read=lambda: begun[number].set() or number)

    with ReadAhead([job(0, 5), job(1, 10), job(2, 11), job(3, 1)]) as source:
        assert source.take() == 0
        assert begun[1].wait(5)
        assert source.take() == 1
        assert not begun[2].wait(0.2)  # it is large: two of them must not be held at once
        assert source.take() == 2
        assert begun[3].wait(5)
        assert source.take() == 3
        with pytest.raises(ValueError, match="every job's result has been taken"):
            source.take()


def test_an_error_is_raised_where_its_result_would_be_taken() -> None:
    def broken() -> None:
        raise OSError("the disk is gone")

    jobs = [Job(nbytes=1, read=lambda: "first"), Job(nbytes=1, read=broken)]
    with ReadAhead(jobs) as source:
        assert source.take() == "first"
        with pytest.raises(OSError, match="the disk is gone"):
            source.take()
