"""SIGINT while arrays change hands: held back, delivered after, immediate the second time."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxtune.training.interrupt import deferred_interrupt


@pytest.fixture(autouse=True)
def _keep_handler():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    """A real signal; Python runs its handler at the next bytecode or so."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def block(done, *, interrupts=1, error=None):
    """Interrupt a protected block so often, noting how far it got."""
    with deferred_interrupt():
        for number in range(interrupts):
            interrupt()
            done.append(number)
        if error is not None:
            raise error
    done.append("after")


def test_is_raised_after_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        block(done)
    assert done == [0]


def test_a_second_one_is_immediate():
    done = []
    with pytest.raises(KeyboardInterrupt):
        block(done, interrupts=2)
    assert done == [0]


def test_nothing_is_raised_without_one():
    done = []
    block(done, interrupts=0)
    assert done == ["after"]


@pytest.mark.parametrize("interrupts", [0, 1, 2])
def test_the_handler_is_put_back(interrupts):
    before = signal.getsignal(signal.SIGINT)
    with contextlib.suppress(KeyboardInterrupt):
        block([], interrupts=interrupts)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_handler_is_put_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError, match="lost"):
        block([], interrupts=0, error=RuntimeError("lost"))
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_before_an_error_is_not_lost():
    with pytest.raises(KeyboardInterrupt) as caught:
        block([], error=RuntimeError("lost"))
    assert isinstance(caught.value.__context__, RuntimeError)


def test_the_users_own_handler_gets_it_once():
    seen = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, frame is None)))
    with deferred_interrupt():
        interrupt()
        assert seen == []
    assert seen == [(signal.SIGINT, False)]


def test_stays_ignored_where_it_is_ignored():
    """As under nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_interrupt():
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


DEFAULT = """
import os, signal
from jaxtune.training.interrupt import deferred_interrupt
signal.signal(signal.SIGINT, signal.SIG_DFL)
with deferred_interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    print("block", flush=True)
print("after", flush=True)
"""


def test_ends_the_process_where_that_is_the_handler():
    done = subprocess.run([sys.executable, "-c", DEFAULT], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("block\n", -signal.SIGINT)


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch):
    """An embedding program's: `getsignal` gives None, which `signal` cannot set again."""
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    done = []
    with pytest.raises(KeyboardInterrupt):
        block(done)
    assert done == []


def test_does_nothing_in_another_thread():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with deferred_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
