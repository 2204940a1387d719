"""The dtype of a model from what the user said, or from the device."""

from typing import Any

import jax
import jax.numpy as jnp

_NAMES = {
    "float32": jnp.float32,
    "fp32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "bf16": jnp.bfloat16,
    "float16": jnp.float16,
    "fp16": jnp.float16,
}


def resolve_dtype(dtype: Any) -> jnp.dtype:
    """A JAX dtype from a JAX, NumPy or torch dtype, its name, or None.

    Args:
      dtype: None is bfloat16 where the device has it (compute capability >= 8.0), float16 on
        older GPUs, float32 on a CPU.

    Returns:
      float32, bfloat16 or float16.

    Raises:
      ValueError: Another dtype.
    """
    if dtype is None:
        return jnp.dtype(_device_dtype(jax.devices()[0]))
    # str(torch.bfloat16) is "torch.bfloat16"; torch itself is never imported for it.
    name = dtype if isinstance(dtype, str) else str(dtype)
    name = name.removeprefix("torch.")
    if name not in _NAMES:
        name = getattr(dtype, "__name__", None) or getattr(dtype, "name", name)
    if name not in _NAMES:
        raise ValueError(
            "`dtype` must be float32, bfloat16, float16 (of JAX, NumPy or torch, or a name) or "
            f"None; got {dtype!r}"
        )
    return jnp.dtype(_NAMES[name])


def is_bfloat16_supported() -> bool:
    """Whether JAX's default device is one that computes in bfloat16: none older than 8.0, no CPU.

    What notebooks pass on as `bf16=`, and its opposite as `fp16=`; a model's own dtype decides.
    """
    return _device_dtype(jax.devices()[0]) == jnp.bfloat16


def _device_dtype(device: Any) -> Any:
    if device.platform == "cpu":
        return jnp.float32
    capability = getattr(device, "compute_capability", None)
    if capability is not None and float(capability) < 8.0:
        return jnp.float16
    return jnp.bfloat16
