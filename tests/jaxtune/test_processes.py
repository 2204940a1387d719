"""One process needs none of what several do, and starts nothing for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import processes
from jaxtune.errors import NotBuiltYetError, ProcessLostError
from jaxtune.models import one_host
from jaxtune.notes import tell
from tests.jaxtune.generation.tiny import tiny_model


def test_one_process_is_the_first_and_waits_for_nobody() -> None:
    assert (processes.count(), processes.number(), processes.is_first()) == (1, 0, True)
    processes.wait_for_all("here")
    np.testing.assert_array_equal(processes.gathered(3), [3])


def test_a_copy_on_the_host_is_the_hosts_own() -> None:
    array = jnp.arange(3)
    copy = processes.on_host(array)
    assert type(copy) is np.ndarray
    assert copy.flags.writeable
    copy[0] = 7
    assert int(array[0]) == 0
    assert not processes.spans(array)
    assert not processes.spans(copy)


def test_the_first_process_alone_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell("first")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    tell("second")
    assert capsys.readouterr().out == "first\n"


@pytest.mark.parametrize(
    ("count", "message", "error"),
    [
        (2, "Gloo all-reduce failed: Connection closed by peer\nmore", ProcessLostError),
        (2, "`max_steps` must be >= 1", ValueError),
        (1, "Gloo is a word in one process", ValueError),
    ],
)
def test_the_loss_of_a_process_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, count: int, message: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(processes, "count", lambda: count)
    with pytest.raises(error) as raised, processes.explained_loss():
        raise ValueError(message)
    said = str(raised.value)
    assert ("--resume-from-checkpoint last" in said) == (error is ProcessLostError)
    assert "more" not in said


def test_what_wants_one_host_is_refused_over_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    one_host.check_on_one_host(model, "a GGUF file")
    with one_host.for_writing(model, whole=True) as own:
        assert own is model
    monkeypatch.setattr(processes, "spans", lambda leaf: isinstance(leaf, jax.Array))
    with pytest.raises(NotBuiltYetError, match="a GGUF file must be made on one host"):
        one_host.check_on_one_host(model, "a GGUF file")
