"""The mesh of `mesh="auto"`: a copy of the weights on every device while they fit, else parts."""

import math
from typing import Any

import jax
from jax.sharding import Mesh

from jaxtune.config import DecoderConfig
from jaxtune.models.placement import DATA, FSDP, mesh_of_sizes
from jaxtune.models.sharding_rules import largest_fsdp

# Of a device's memory: the weights' part where nothing is known yet of what a step will take.
SHARE = 0.5


def mesh_for_weights(config: DecoderConfig, weights: Any, limit: int | None) -> Mesh:
    """All devices: a copy of the weights on each if they take at most half of it.

    The trainer, which knows the batch, splits them where that does not leave enough.

    Args:
      config: The model's sizes.
      weights: All its leaves; abstract ones will do.
      limit: Of a device's allocator, bytes; None: none.

    Returns:
      A mesh.
    """
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    return copied() if limit is None or size <= SHARE * limit else split(config)


def copied() -> Mesh:
    """All devices as "data"."""
    return mesh_of_sizes({DATA: jax.device_count()})


def split(config: DecoderConfig) -> Mesh:
    """All devices, as many of them as "fsdp" as the model can be divided over."""
    devices = jax.device_count()
    parts = largest_fsdp(config, devices)
    return mesh_of_sizes({DATA: devices // parts, FSDP: parts})


def device_limit() -> int | None:
    """Bytes that the allocator of a device may take; None where it knows no limit, as on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("bytes_limit")
