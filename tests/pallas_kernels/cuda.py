"""Programs lowered for CUDA on a machine that has no GPU."""

import re
from contextlib import nullcontext

import jax

CALL = "__gpu$xla.gpu.triton"


def gpu():
    """Tell JAX of a GPU that is not there, where it asks for one (from 0.11 on)."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA L4", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def lowered(function, *arguments):
    """The program's text."""
    with gpu():
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return program.as_text()


def operands(text):
    """Types of the operands of the program's one kernel."""
    (call,) = re.findall(rf"custom_call @{re.escape(CALL)}\(.*", text)
    return re.findall(r"tensor<([^>]*)>", call.rsplit(" : ", 1)[1].split("->")[0])


def result(text):
    """Type of the result of the program's one kernel."""
    (kind,) = re.findall(rf"custom_call @{re.escape(CALL)}\(.*-> tensor<([^>]*)>", text)
    return kind
