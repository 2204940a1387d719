"""When `jaxtune train` is one of several processes, and what the launcher leaves to say."""

import signal
from typing import Any

import pytest

from jaxtune import processes
from jaxtune.cli.distributed import join_if_told, launched
from jaxtune.cli.train_options import Train

SLURM = {
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `join` was called with."""
    calls: list[Any] = []
    monkeypatch.setattr(processes, "join", lambda *where, **more: calls.append((*where, more)))
    return calls


def options(**given: Any) -> Train:
    return Train(model="m", dataset="d", **given)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, (None, None, None)),
        (SLURM, (None, 16, 3)),
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, (None, None, None)),
        (OPEN_MPI, (None, 4, 1)),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", **OPEN_MPI}, ("a:1", 4, 1)),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            ("a:1", 2, 0),
        ),
    ],
)
def test_what_a_launcher_says(environment: dict[str, str], found: Any) -> None:
    assert launched(environment) == found


@pytest.mark.parametrize(
    ("environment", "given", "call"),
    [
        (SLURM, {}, (None, 16, 3)),
        (OPEN_MPI, {"coordinator_address": "a:1"}, ("a:1", 4, 1)),
        ({}, {"distributed": True}, (None, None, None)),
        (
            {},
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 0},
            ("a:1", 2, 0),
        ),
    ],
)
def test_a_process_that_is_one_of_several_joins_them(
    joined: list[Any], environment: dict[str, str], given: dict[str, Any], call: Any
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    join_if_told(options(heartbeat_timeout=20, **given), environment)
    signal.signal(signal.SIGTERM, before)
    assert joined == [(*call, {"heartbeat_timeout": 20})]


@pytest.mark.parametrize("environment", [{}, {**SLURM, "SLURM_NTASKS": "1"}])
def test_a_process_alone_joins_nobody(joined: list[Any], environment: dict[str, str]) -> None:
    join_if_told(options(), environment)
    assert joined == []


def test_what_nobody_says_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(processes, "join", refuse)
    with pytest.raises(ValueError, match="need --coordinator-address, --num-processes and --pro"):
        join_if_told(options(coordinator_address="a:1"), {})


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
        options(**given)
