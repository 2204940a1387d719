"""Pallas Triton, where this JAX has it: deprecated since JAX 0.11, and so imported in one place."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl

from pallas_kernels.dispatch import Backend, Device, Problem

try:
    from jax.experimental.pallas import triton as _triton
except ImportError:  # removed from a future JAX
    _triton = None

# Any: kernels run only where it is there, which no type checker can follow.
plt: Any = _triton

ABSENT = "this JAX has no jax.experimental.pallas.triton"
CAPABILITY = (8, 0)  # XLA compiles no Triton for older cards, and says so too late


def refuse_device(device: Device) -> str | None:
    """Say why a kernel of Pallas Triton cannot be compiled for a device; None if it can."""
    if plt is None:
        return ABSENT
    if device.platform != "gpu" or device.compute_capability is None:
        return f"it needs an NVIDIA GPU; the device is a {device.platform}"
    if device.compute_capability < CAPABILITY:
        major, minor = device.compute_capability
        return f"it needs compute capability 8.0; the GPU has {major}.{minor}"
    return None


def backends(
    forward: Callable[..., Any],
    refuse: Callable[[Problem], str | None],
    refuse_compiled: Callable[[Problem], str | None] = lambda _: None,
) -> tuple[Backend, Backend]:
    """The two backends of one kernel: compiled ("triton") and interpreted ("interpret").

    Args:
      forward: As in `Backend`, with the keyword `interpret`.
      refuse: Says why the kernel cannot serve a problem, on any device.
      refuse_compiled: Says why it could not even be compiled for one.

    Returns:
      (compiled, interpreted).
    """

    def compiled(problem: Problem) -> str | None:
        return refuse_compiled(problem) or refuse_device(problem.device) or refuse(problem)

    def interpreted(problem: Problem) -> str | None:
        return ABSENT if plt is None else refuse(problem)

    return (
        Backend(name="triton", refuse=compiled, forward=forward),
        Backend(
            name="interpret", refuse=interpreted, forward=functools.partial(forward, interpret=True)
        ),
    )


def whole(array: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """A kernel's view of an array: all of it, so that the kernel finds its own places."""
    rank = len(array.shape)
    return pl.BlockSpec(array.shape, lambda *_: (0,) * rank)
