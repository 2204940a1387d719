"""Pallas Triton, where this JAX has it: deprecated since JAX 0.11, and so imported in one place."""

from typing import Any

from pallas_kernels.dispatch import Device

try:
    from jax.experimental.pallas import triton as _triton
except ImportError:  # removed from a future JAX
    _triton = None

# Any: kernels run only where it is there, which no type checker can follow.
plt: Any = _triton

CAPABILITY = (8, 0)  # XLA compiles no Triton for older cards, and says so too late


def refuse(device: Device) -> str | None:
    """Say why a kernel of Pallas Triton cannot be compiled for a device; None if it can."""
    if plt is None:
        return "this JAX has no jax.experimental.pallas.triton"
    if device.platform != "gpu" or device.compute_capability is None:
        return f"it needs an NVIDIA GPU; the device is a {device.platform}"
    if device.compute_capability < CAPABILITY:
        major, minor = device.compute_capability
        return f"it needs compute capability 8.0; the GPU has {major}.{minor}"
    return None


def refuse_interpreted() -> str | None:
    """Say why a kernel cannot be interpreted."""
    return "this JAX has no jax.experimental.pallas.triton" if plt is None else None
