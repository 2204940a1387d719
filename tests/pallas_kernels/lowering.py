"""Programs lowered for CUDA on a machine that has no GPU, and the kernels in them."""

import re
from contextlib import nullcontext

import jax

CALL = "__gpu$xla.gpu.triton"
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


# Compute capability 8.0, 8.9, 9.0 and 10.0, where JAX lets one name the device.
NAMED = hasattr(jax.sharding, "AbstractDevice")
DEVICES = ("NVIDIA A100-SXM4-80GB", "NVIDIA L4", "NVIDIA H100 80GB HBM3", "NVIDIA B200")


def gpu(kind="NVIDIA L4"):
    """Tell JAX of a GPU that is not there, where it asks for one."""
    if not NAMED:
        return nullcontext()
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=_abstract(kind))
    return jax.sharding.use_abstract_mesh(mesh)


def of_gpus(mesh, kind):
    """A mesh of such GPUs in place of its devices; itself where JAX does not ask it for one."""
    if not NAMED:
        return mesh
    sizes, names, types = mesh.axis_sizes, mesh.axis_names, mesh.axis_types
    return jax.sharding.AbstractMesh(sizes, names, types, abstract_device=_abstract(kind))


def _abstract(kind):
    return jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")


def lowered(function, *arguments, kind="NVIDIA L4"):
    """Text of the program."""
    with gpu(kind):
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return program.as_text()


def operands(text):
    """Types of the operands of the program's one kernel."""
    (types,) = kernels(text)
    return types[0]


def results(text):
    """Types of the results of the program's one kernel."""
    (types,) = kernels(text)
    return types[1]


def kernels(text):
    """Types of the operands and of the results of each kernel, in order."""
    calls = re.findall(rf"custom_call @{re.escape(CALL)}\(.*", text)
    sides = (call.rsplit(" : ", 1)[1].split("->") for call in calls)
    return [tuple(re.findall(r"tensor<([^>]*)>", side) for side in two) for two in sides]


def accesses(function, *arguments):
    """How many loads and stores of the one kernel have a mask, and how many have none.

    The interpreter drops what lies outside an array, so that it cannot show a mask that is missing.
    """
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    (call,) = (e for e in program.eqns if e.primitive.name == "pallas_call")
    found = [
        e for e in call.params["jaxpr"].eqns if e.primitive.name in ("masked_load", "masked_swap")
    ]
    masked = sum(any(v.aval.dtype == bool for v in e.invars) for e in found)
    return masked, len(found) - masked
