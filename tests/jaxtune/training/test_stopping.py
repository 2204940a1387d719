"""A signal to one of several processes is raised a step later, where all read it."""

import os
import signal

import jax
import pytest

from jaxtune import processes
from jaxtune.training.stopping import stops_together

MESH = jax.make_mesh((1,), ("data",))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_is_raised_a_step_after_it_was_sent(
    number: int, error: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with stops_together(MESH) as check:
        check()
        os.kill(os.getpid(), number)
        check()  # sends it; what it reads was sent before
        with pytest.raises(error) as raised:
            check()
    assert getattr(raised.value, "code", None) in (None, 143)
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("two")
def test_a_second_one_is_immediate() -> None:
    with stops_together(MESH) as check:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        check()


def test_alone_a_signal_is_raised_at_once() -> None:
    with stops_together(MESH), pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
