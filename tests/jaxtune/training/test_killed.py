"""Killed at any moment of training and saving, a run loses nothing but the steps after its save."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxtune.training.checkpoint import checkpoints
from jaxtune.training.manifest import read_manifest
from tests.families import VARIANTS
from tests.jaxtune.training.killed_run import trainer_in
from tests.jaxtune.training.runs import records_of
from tests.jaxtune.training.saved import arrays_of, state_of
from tests.oracles import Oracle, make_oracle

ROOT = Path(__file__).resolve().parents[3]
Start = Callable[[int], subprocess.Popen]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("killed"), initializer_range=0.3)


@pytest.fixture
def start(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts the process that forks the runs of so many steps."""
    started = []

    def begin(steps: int) -> subprocess.Popen:
        program = [sys.executable, "-m", "tests.jaxtune.training.killed_run"]
        cache = tmp_path_factory.getbasetemp() / "xla-killed"
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        process = subprocess.Popen(
            [*program, str(oracle.adapter_folder), str(steps)],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


def run_until(process: subprocess.Popen, folder: Path, send: Callable[[int], None]) -> int:
    """Let a run begin, do something to its process, and return how it ended."""
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    line = process.stdout.readline()
    if line == "begun\n":
        send(child)
        line = process.stdout.readline()
    return int(line.removeprefix("ended "))


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, a minute at most."""
    end = time.monotonic() + 60
    while not holds() and time.monotonic() < end:
        time.sleep(0.0005)


def saving(folder: Path) -> bool:
    return any(folder.glob(".checkpoint-*"))


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder."""
    return [int(path.name.removeprefix("checkpoint-")) for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("kills", "steps"), [(3, 15), pytest.param(20, 120, marks=pytest.mark.slow)]
)
def test_nothing_is_lost_by_kills_at_random_moments(
    oracle: Oracle, start: Start, tmp_path: Path, kills: int, steps: int
) -> None:
    process, draw = start(steps), random.Random(kills)
    whole = trainer_in(tmp_path / "whole", oracle.adapter_folder, steps)
    whole.train()
    folder, last, cut_off = tmp_path / "killed", 0, 0
    for number in range(kills):

        def kill(child: int, last: int = last, in_a_save: bool = number % 2 == 0) -> None:
            until(lambda: max(steps_in(folder), default=0) > last)
            time.sleep(draw.uniform(0, 0.1))
            if in_a_save:
                until(lambda: saving(folder))
                time.sleep(draw.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)

        assert run_until(process, folder, kill) == -signal.SIGKILL
        cut_off += saving(folder)
        for checkpoint in checkpoints(folder):
            read_manifest(checkpoint)  # it is whole
        assert max(steps_in(folder)) > last
        last = max(steps_in(folder))
    assert cut_off, "no kill hit a save"
    assert last < steps
    assert run_until(process, folder, lambda _: None) == 0
    ends = [path / f"checkpoint-{steps}" for path in (tmp_path / "whole", folder)]
    assert state_of(ends[0]) == state_of(ends[1])
    assert state_of(ends[1])["log_history"] == records_of(whole)
    mine, theirs = map(arrays_of, ends)
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert {path.name for path in folder.iterdir()} == {
        *(f"checkpoint-{step}" for step in (steps - 1, steps)),
        "loss.png",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_saves_the_last_whole_step(
    start: Start, tmp_path: Path, number: int, code: int
) -> None:
    def send(child: int) -> None:
        until(lambda: bool(steps_in(tmp_path)))
        os.kill(child, number)

    assert run_until(start(200), tmp_path, send) == code
    assert not saving(tmp_path)
    last = checkpoints(tmp_path)[-1]
    read_manifest(last)
    assert last.name == f"checkpoint-{state_of(last)['global_step']}"
