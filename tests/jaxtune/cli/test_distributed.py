"""When `jaxtune train` is one of several processes, and what the launcher leaves to say."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxtune import __main__ as program
from jaxtune import cli, processes
from jaxtune.cli import train
from jaxtune.cli.launcher import launcher_options
from jaxtune.cli.train_options import Train

SLURM = {
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "a:1"}


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ""),
        (SLURM, "--distributed --num-processes=16 --process-id=3"),
        ({**SLURM, "SLURM_NTASKS": "1"}, ""),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, ""),
        (OPEN_MPI, "--distributed --num-processes=4 --process-id=1"),
        (ADDRESS, "--distributed --coordinator-address=a:1"),
        (
            {**ADDRESS, **SLURM, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "--distributed --coordinator-address=a:1 --num-processes=2 --process-id=0",
        ),
    ],
)
def test_what_a_launcher_says(environment: dict[str, str], words: str) -> None:
    assert launcher_options(environment) == words.split()


def test_what_the_user_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["train", "--model=m", "--dataset=d", "--process-id", "2"]
    monkeypatch.setattr(sys, "argv", ["jaxtune", *given])
    monkeypatch.setattr(program.os, "environ", dict(OPEN_MPI))
    found: list[Train] = []
    monkeypatch.setattr(train, "run", lambda options: found.append(options) or 0)
    assert program.main() == 0
    (options,) = found
    assert (options.distributed, options.num_processes, options.process_id) == (True, 4, 2)
    others: list[list[str]] = []
    monkeypatch.setattr(cli, "main", lambda arguments: others.append(arguments) or 0)
    monkeypatch.setattr(sys, "argv", ["jaxtune", "plan"])
    assert program.main() == 0
    assert others == [["plan"]]


@pytest.mark.parametrize(
    ("given", "call"),
    [
        ({"num_processes": 16, "process_id": 3}, (None, 16, 3)),
        ({"distributed": True}, (None, None, None)),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 0}, ("a:1", 2, 0)),
        ({}, None),
    ],
)
def test_a_process_joins_the_others_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, Any], call: Any
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(processes, "join", lambda *where, **more: calls.append((*where, more)))
    before = signal.getsignal(signal.SIGTERM)
    request = Train(model="m", dataset=str(tmp_path / "none"), heartbeat_timeout=20, **given)
    with pytest.raises(FileNotFoundError):
        train.run(request)
    signal.signal(signal.SIGTERM, before)
    assert calls == ([] if call is None else [(*call, {"heartbeat_timeout": 20})])


def test_what_nobody_says_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(processes, "join", refuse)
    with pytest.raises(ValueError, match="need --coordinator-address, --num-processes and --pro"):
        train.run(Train(model="m", dataset="d", coordinator_address="a:1"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 0}, "--num-processes must be >= 1; got 0"),
        ({"process_id": -1}, "--process-id must be >= 0; got -1"),
        ({"heartbeat_timeout": 5}, "--heartbeat-timeout must be >= 10; got 5"),
    ],
)
def test_a_number_out_of_range_is_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Train(model="m", dataset="d", **given)
