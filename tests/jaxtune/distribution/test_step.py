"""A training step over many devices is the step of one, and moves only what it should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tolerances import tolerance

ROOT = Path(__file__).parents[3]
MESHES = {
    "four data": {"data": 4},
    "four fsdp": {"fsdp": 4},
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "data and fsdp": {"data": 2, "fsdp": 4},
    "tensor": {"tensor": 4},
    "fsdp and tensor": {"fsdp": 4, "tensor": 2},
    "all three": {"data": 2, "fsdp": 2, "tensor": 2},
}
KINDS = ("dense", "nf4", "bank", "full")
OPTIMIZERS = {"padded": "sgd", "packed": "adamw_torch"}


def run(cases):
    """What each case gives, from one process over eight devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    command = [sys.executable, "-m", "tests.jaxtune.distribution.runs", json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found, optim):
    assert found["fell"] > 0.1
    assert found["loss"] <= tolerance("float32", "mesh_loss")
    assert found["gradient"] <= tolerance("float32", "mesh_gradient")
    assert found["parameters"] <= tolerance("float32", f"mesh_{optim}")


def test_a_step_over_a_mixed_mesh_is_the_step_of_one_device():
    sizes = {"data": 2, "fsdp": 4}
    case = {"kind": "nf4", "batch": "packed", "optim": "sgd", "sizes": sizes, "steps": 3}
    (found,) = run([case])
    check(found, "sgd")
    # Of the layers 4 bits an element travel, forward and back; LoRA's gradient once, at the end.
    moved = found["traffic"]
    assert {name for name in moved if name.startswith("in ")} == {"in all-gather u8"}
    assert moved["out all-reduce f32"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("batch", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_over_any_mesh_are_those_of_one_device(kind, batch):
    optim = OPTIMIZERS[batch]
    case = {"kind": kind, "batch": batch, "optim": optim, "steps": 10}
    for name, found in zip(
        MESHES, run([case | {"sizes": s} for s in MESHES.values()]), strict=True
    ):
        print(name, found)
        check(found, optim)
        if kind in ("dense", "nf4") and "tensor" not in MESHES[name]:
            assert not any(moved.startswith("in all-reduce") for moved in found["traffic"])
