"""Rotary position embedding, half-split as in Hugging Face checkpoints."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxtune.config import RopeSpec


def inverse_frequencies(spec: RopeSpec, head_dim: int) -> np.ndarray:
    """Radians per token of each pair of channels, [H/2] float32.

    inv_freq_i = theta^(-2i/H); linear: / factor; llama3: wavelengths over original/low are
    divided by the factor, those under original/high are kept, between them
    (1-s) inv/factor + s inv with s = (original/wavelength - low) / (high - low).

    Args:
      spec: The scaling and its numbers.
      head_dim: H, even.

    Returns:
      A float32 array, a constant of the compiled program.

    Source: transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inv_freq = np.float32(1) / np.power(np.float32(spec.rope_theta), exponent)
    if spec.factor is None:
        return inv_freq
    stretched = (inv_freq / np.float32(spec.factor)).astype(np.float32)
    if spec.low_freq_factor is None or spec.high_freq_factor is None:
        return stretched
    original = spec.original_max_position_embeddings or 0
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - spec.low_freq_factor) / (
        spec.high_freq_factor - spec.low_freq_factor
    )
    between = (1 - smooth) * stretched + smooth * inv_freq
    low, high = original / spec.low_freq_factor, original / spec.high_freq_factor
    scaled = np.where(wavelength > low, stretched, np.where(wavelength < high, inv_freq, between))
    return scaled.astype(np.float32)


def rope_tables(
    spec: RopeSpec, head_dim: int, positions: Int[Array, "B T"], dtype: DTypeLike
) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
    """Cosines and sines of position * inv_freq, computed in float32 and cast to `dtype`.

    The cast before the rotation is Hugging Face's order (`LlamaRotaryEmbedding.forward`), so
    that bfloat16 rows agree with it.

    Args:
      spec: The rotary embedding.
      head_dim: H.
      positions: Token positions inside their document, [B, T].
      dtype: Of the activations.

    Returns:
      cos and sin, [B, T, H]; the second half repeats the first.
    """
    inv_freq = jnp.asarray(inverse_frequencies(spec, head_dim))
    angle = positions[..., None].astype(jnp.float32) * inv_freq  # [B, T, H/2]
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def apply_rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "_ T H"], sin: Float[Array, "_ T H"]
) -> Float[Array, "B T N H"]:
    """Rotate each pair (x_i, x_{i+H/2}) by its angle: x cos + rotate_half(x) sin."""
    first, second = jnp.split(x, 2, axis=-1)
    rotated = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, :, None, :] + rotated * sin[:, :, None, :]
