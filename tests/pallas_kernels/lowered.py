"""Programs lowered for CUDA on a machine that has no GPU."""

from contextlib import nullcontext

import jax

CALL = "__gpu$xla.gpu.triton"  # the custom call that holds one kernel


def gpu():
    """Tell JAX of a GPU that is not there, where it asks for one (from 0.11 on)."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA L4", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def lowered(function, *arguments):
    """Text of the program."""
    with gpu():
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    return program.as_text()
