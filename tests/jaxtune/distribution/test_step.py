"""A training step over many devices is the step of one, and moves only what it should."""

import json

import pytest

from tests.jaxtune.distribution.processes import run
from tests.tolerances import tolerance

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


def check(found, optim):
    assert found["fell"] > 0.1
    assert found["loss"] <= tolerance("float32", "mesh_loss")
    assert found["gradient"] <= tolerance("float32", "mesh_gradient")
    assert found["parameters"] <= tolerance("float32", f"mesh_{optim}")


def test_a_step_over_a_mixed_mesh_is_the_step_of_one_device():
    sizes = {"data": 2, "fsdp": 4}
    case = {"kind": "nf4", "batch": "packed", "optim": "sgd", "sizes": sizes, "steps": 3}
    (found,) = run("runs", json.dumps([case]))
    check(found, "sgd")
    # Of the layers 4 bits an element travel, forward and back; LoRA's gradient once, at the end.
    moved = found["traffic"]
    assert {name for name in moved if name.startswith("in ")} == {"in all-gather u8"}
    assert moved["out all-reduce f32"] == 1


@pytest.mark.slow
def test_kernels_over_many_devices_see_what_one_of_them_has():
    found = run("kernels")
    rows, stacks = "1x32x", "1x"  # one of eight rows, and the layer alone
    attention = [operands for operands in found["kernels"] if "1x32xi32" in operands]
    weights = [operands for operands in found["kernels"] if "16xf32" in operands]
    assert attention
    assert weights
    assert all(operands[0].startswith(rows) for operands in attention)
    assert all(operands[1].startswith(stacks) for operands in weights)
    # What is gathered at all: 4-bit weights as they are stored; embedding and head.
    dtypes = {kind.rsplit("x", 1)[1] for kind in found["gathered"]}
    ends = [kind for kind in found["gathered"] if kind.endswith("f32")]
    assert dtypes == {"ui8", "f32"}
    assert ends == ["97x64xf32"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("batch", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_over_any_mesh_are_those_of_one_device(kind, batch):
    optim = OPTIMIZERS[batch]
    case = {"kind": kind, "batch": batch, "optim": optim, "steps": 10}
    cases = [case | {"sizes": sizes} for sizes in MESHES.values()]
    for name, found in zip(MESHES, run("runs", json.dumps(cases)), strict=True):
        check(found, optim)
        if kind in ("dense", "nf4") and "tensor" not in MESHES[name]:
            assert not any(moved.startswith("in all-reduce") for moved in found["traffic"])
