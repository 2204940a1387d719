"""What differs between the processes of a run is refused before its first step."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxtune import processes
from jaxtune.training.agreement import (
    agreed_bytes,
    agreed_checkpoint,
    check_all_take_part,
    check_rows_agree,
    process_lines,
)
from jaxtune.training.manifest import Identity

GIB = 2**30
ROWS = Identity(
    seed=1, batch_size=2, gradient_accumulation_steps=1, rows=9, data="aa", packing=None
)
Other = Callable[..., None]


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Other:
    """Makes this process one of two; the other one has these values where they are compared."""
    monkeypatch.setattr(processes, "count", lambda: 2)

    def has(*values: Any) -> None:
        theirs = itertools.chain(values)
        monkeypatch.setattr(
            processes,
            "gathered",
            lambda mine: np.stack([mine, np.asarray(next(theirs, mine), np.asarray(mine).dtype)]),
        )

    has()
    return has


def test_alone_nothing_is_compared(tmp_path: Path) -> None:
    check_all_take_part(None)
    check_rows_agree(lambda: pytest.fail("all rows were read"), 3, None)
    assert agreed_bytes(None) is None
    assert agreed_bytes(5) == 5
    assert agreed_checkpoint(None, tmp_path) is None
    assert list(process_lines()) == []


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    ("mesh", "got"),
    [
        (None, "got none"),
        (jax.make_mesh((1,), ("data",)), r"got one over those of processes \[0\]"),
    ],
)
def test_a_mesh_must_take_all_processes(mesh: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"needs a mesh over the devices of all; .*{got}"):
        check_all_take_part(mesh)


def test_rows_must_be_the_same(other: Other) -> None:
    check_rows_agree(lambda: ROWS, 3, None)
    other(7)
    with pytest.raises(ValueError, match=r"must train on the same rows .* 9 rows, 3 steps and"):
        check_rows_agree(lambda: ROWS, 3, None)


def test_the_checkpoint_must_be_the_same(other: Other, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a folder checkpoint-N"):
        agreed_checkpoint(True, tmp_path)
    other(7)
    with pytest.raises(ValueError, match="this one found none"):
        agreed_checkpoint(True, tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    other(7)
    with pytest.raises(ValueError, match=r"checkpoint-3, and others .* all hosts share"):
        agreed_checkpoint(True, tmp_path)
    other()
    assert agreed_checkpoint(True, tmp_path) == tmp_path / "checkpoint-3"


def test_memory_is_that_of_the_process_with_the_least(other: Other) -> None:
    other(1024)
    assert agreed_bytes(9 * GIB) == GIB
    other(-1)
    assert agreed_bytes(9 * GIB) is None


@pytest.mark.usefixtures("other")
def test_several_processes_are_said() -> None:
    assert next(iter(process_lines())).startswith("  hosts    2 processes; if one ends")
