"""Pallas Triton, where this JAX has it: deprecated since JAX 0.11, and so imported in one place."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl

from pallas_kernels.dispatch import Backend, Device, Problem, no_backward

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
    backward: Callable[..., Any] = no_backward,
) -> tuple[Backend, Backend]:
    """The two backends of one kernel: compiled ("triton") and interpreted ("interpret").

    Args:
      forward: As in `Backend`, with the keyword `interpret`.
      refuse: Says why the kernel cannot serve a problem, on any device.
      refuse_compiled: Says why it could not even be compiled for one.
      backward: As in `Backend`, with the keyword `interpret`; left out if the op has none.

    Returns:
      (compiled, interpreted).
    """

    def compiled(problem: Problem) -> str | None:
        return refuse_compiled(problem) or refuse_device(problem.device) or refuse(problem)

    def interpreted(problem: Problem) -> str | None:
        return ABSENT if plt is None else refuse(problem)

    pulled = functools.partial(backward, interpret=True)
    return (
        Backend(name="triton", refuse=compiled, forward=forward, backward=backward),
        Backend(
            name="interpret",
            refuse=interpreted,
            forward=functools.partial(forward, interpret=True),
            # `no_backward` is known by its identity.
            backward=no_backward if backward is no_backward else pulled,
        ),
    )


def refuse_dtype(problem: Problem) -> str | None:
    """Say why a kernel cannot compute in a problem's dtype; None if it can."""
    if problem.dtype in ("float32", "bfloat16", "float16"):
        return None
    return f"arrays must be float32, bfloat16 or float16; got {problem.dtype}"


def instruction(name: str, x: jax.Array, dtype: str = "float32") -> jax.Array:
    """One PTX instruction of each element, inside a compiled kernel.

    Args:
      name: Of the instruction, such as "rcp.rn.f32".
      x: float32.
      dtype: Of the result, "float32" or "int32".

    Returns:
      An array of x's shape.
    """
    (y,) = plt.elementwise_inline_asm(
        f"{name} $0, $1;",
        args=[x],
        constraints={"float32": "=f,f", "int32": "=r,f"}[dtype],
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, dtype)],
    )
    return y


def whole(array: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """A kernel's view of an array: all of it, so that the kernel finds its own places."""
    rank = len(array.shape)
    return pl.BlockSpec(array.shape, lambda *_: (0,) * rank)
