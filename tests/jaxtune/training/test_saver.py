"""Which checkpoints stay, and that the run does not wait for the one being written."""

import threading
from pathlib import Path

import pytest

from jaxtune.training.callbacks import TrainerCallback, listens_to
from jaxtune.training.checkpoint import _remove_old, checkpoints
from jaxtune.training.state import TrainerState
from jaxtune.training.writer import Writer


def kept(folder: Path, newest: int, limit: int | None, best: int | None = None) -> list[str]:
    for step in (2, 9, 10, 100, newest):
        (folder / f"checkpoint-{step}").mkdir(exist_ok=True)
    (folder / "checkpoint-last").mkdir(exist_ok=True)
    state = TrainerState(best_model_checkpoint=best and str(folder / f"checkpoint-{best}"))
    _remove_old(folder / f"checkpoint-{newest}", state, limit)
    assert not any(folder.glob(".*"))
    return [path.name.removeprefix("checkpoint-") for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("newest", "limit", "best", "left"),
    [
        (100, None, None, ["2", "9", "10", "100"]),
        (100, 2, None, ["10", "100"]),
        (100, 1, None, ["100"]),
        (100, 1, 2, ["2", "100"]),
        (100, 2, 9, ["9", "100"]),
        (3, 1, None, ["3"]),  # of a run that resumed an early one
    ],
)
def test_the_lowest_steps_go_but_never_the_newest_or_the_best(
    tmp_path: Path, newest: int, limit: int | None, best: int | None, left: list[str]
) -> None:
    assert kept(tmp_path, newest, limit, best) == left


def test_one_write_at_a_time_beside_the_caller() -> None:
    writer, release, done = Writer(), threading.Event(), []
    writer.start(lambda: (release.wait(10), done.append("first")))
    writer.check()  # returns although the first is in flight
    assert done == []
    threading.Timer(0.05, release.set).start()
    writer.start(lambda: done.append("second"))
    assert done[0] == "first"
    writer.wait()
    assert done == ["first", "second"]
    writer.close()


def test_what_a_write_raised_is_raised_once() -> None:
    def fail() -> None:
        raise OSError("disk full")

    writer = Writer()
    writer.start(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.wait()
    writer.wait()
    writer.close()


def test_only_a_callback_of_its_own_on_save_is_waited_for() -> None:
    class Reads(TrainerCallback):
        def on_save(self, *_, **__):
            return None

    class Steps(TrainerCallback):
        def on_step_end(self, *_, **__):
            return None

    assert listens_to("on_save", Reads())
    assert not listens_to("on_save", Steps())
