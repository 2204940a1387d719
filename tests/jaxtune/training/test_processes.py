"""Two real processes over loopback: one run, and what becomes of it when one of them ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convert import read_safetensors
from jaxtune import FastLanguageModel
from jaxtune.training.checkpoint import checkpoints
from jaxtune.training.manifest import read_manifest
from tests.base_install import write_model
from tests.jaxtune.training.process_run import (
    FOUR_BITS,
    STEPS,
    StopsAfter,
    losses_of,
    measured,
    trainer_of,
)
from tests.tolerances import relative_error, tolerance

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
Start = Callable[..., list[subprocess.Popen]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def four_bits(model: Path) -> Path:
    folder = model.parent / FOUR_BITS
    loaded, _ = FastLanguageModel.from_pretrained(str(model), load_in_4bit=True)
    loaded.save_pretrained_merged(folder, save_method="merged_4bit")
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the two processes of a run; whatever is left of them ends with the test."""
    started: list[subprocess.Popen] = []

    def begin(what: str, model: Path, output: Path, axis: str = "data") -> list[subprocess.Popen]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        }
        program = [sys.executable, "-m", "tests.jaxtune.training.process_run", what]
        for number in range(2):
            started.append(
                subprocess.Popen(
                    [*program, str(model), str(output), axis, str(port), str(number)],
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        return started[-2:]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(run: list[subprocess.Popen], seconds: float = 120) -> list[tuple[int, str]]:
    """The status of each process, and what it said."""
    said = [process.communicate(timeout=seconds)[0] for process in run]
    return [(process.returncode, text) for process, text in zip(run, said, strict=True)]


def read_until(process: subprocess.Popen, line: str) -> None:
    while process.stdout.readline() not in (f"{line}\n", ""):
        pass


@pytest.mark.parametrize(
    ("axis", "kind"), [("data", "model"), ("fsdp", "model"), ("fsdp", "four_bits")]
)
def test_losses_gradients_and_parameters_are_those_of_one(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path, axis: str, kind: str
) -> None:
    model = request.getfixturevalue(kind)
    run = start("measure", model, tmp_path, axis)
    one = measured(model, tmp_path / "alone")
    arrays = one.pop("arrays")
    said = ended(run)
    assert [status for status, _ in said] == [0, 0], said
    assert "trainable params" not in said[1][1]
    for number in range(2):
        found = json.loads((tmp_path / f"found-{number}.json").read_text())
        assert len(set(found["sgd losses"])) == STEPS
        for name, values in one.items():
            assert found[name] == pytest.approx(values, rel=tolerance("float32", "loss")), name
        with np.load(tmp_path / f"arrays-{number}.npz") as held:
            assert set(held) == set(arrays)
            for name, array in arrays.items():
                kind = name.split(" ")[0]
                most = tolerance("float32", f"spread_{kind}")
                assert relative_error(held[name], array) <= most, name
    file = "adapter_model.safetensors"
    ours, alone = (read_safetensors(tmp_path / f / "saved" / file) for f in (".", "alone"))
    for name, tensor in alone.items():
        most = tolerance("float32", "spread_adamw_torch")
        assert relative_error(ours[name], tensor) <= most, name


def test_a_run_goes_from_one_process_to_two_and_back(
    model: Path, start: Start, tmp_path: Path
) -> None:
    whole = trainer_of(model, disable_tqdm=True)
    whole.train()
    held = {"output_dir": tmp_path, "save_steps": 1, "save_total_limit": 3, "disable_tqdm": True}
    trainer_of(model, callbacks=[StopsAfter(3)], **held).train()
    said = ended(start("resume", model, tmp_path))
    assert [status for status, _ in said] == [0, 0], said
    assert "training on 2 x" in said[0][1]
    assert "is resumed at step 3" in said[0][1]
    assert "training" not in said[1][1]
    assert checkpoints(tmp_path)[-1].name == "checkpoint-6"
    last = trainer_of(model, **held)
    last.train(resume_from_checkpoint=True)
    assert losses_of(last) == pytest.approx(losses_of(whole), rel=tolerance("float32", "loss"))


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_is_killed_the_other_ends_and_the_run_resumes(
    model: Path, start: Start, tmp_path: Path, killed: int
) -> None:
    run = start("long", model, tmp_path)
    read_until(run[killed], "step 3")
    run[killed].send_signal(signal.SIGKILL)
    before = time.monotonic()
    (status, said) = ended([run[1 - killed]])[0]
    assert status not in (0, -signal.SIGKILL)
    assert time.monotonic() - before < 60
    assert "start all of them again with resume_from_checkpoint=True" in said.replace("\n", " ")
    last = checkpoints(tmp_path)[-1]
    read_manifest(last)  # it is whole
    step = int(last.name.removeprefix("checkpoint-"))
    alone = {"max_steps": 100000, "callbacks": [StopsAfter(step + 2)], "disable_tqdm": True}
    resumed = trainer_of(model, output_dir=tmp_path, save_strategy="no", **alone)
    resumed.train(resume_from_checkpoint=str(last))
    whole = trainer_of(model, **alone)
    whole.train()
    assert losses_of(resumed) == pytest.approx(losses_of(whole), rel=tolerance("float32", "loss"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_to_one_stops_both_at_one_step(
    model: Path, start: Start, tmp_path: Path, number: int, status: int
) -> None:
    run = start("long", model, tmp_path)
    read_until(run[1], "step 3")
    run[1].send_signal(number)
    said = ended(run)
    assert {code for code, _ in said} <= {status, -number}, said
    steps = [text.rsplit("step ", 1)[1].split()[0] for _, text in said if "step " in text]
    assert len(set(steps)) == 1
    read_manifest(checkpoints(tmp_path)[-1])
