"""A model spread over a mesh that is not there: what each device holds, and what it receives."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh

from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import is_stacked
from jaxtune.models.placement import AXES, FSDP, devices_of
from jaxtune.models.sharding import place_of
from jaxtune.models.sharding_rules import check_mesh, names_at
from jaxtune.training.sizes import nbytes
from jaxtune.training.step import split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Received:
    """Bytes that each device receives from the others in a step.

    Attributes:
      weights: A layer at a time, in the forward pass and again in the backward pass of each
        micro-batch; embedding and head once, which the compiler takes out of that loop.
      gradients: Of what is trained, summed once a step.
    """

    weights: float
    gradients: float

    @property
    def total(self) -> float:
        """Both."""
        return self.weights + self.gradients


def mesh_without_devices(sizes: dict[str, int]) -> Mesh:
    """A mesh of these sizes, in which one device stands for all: nothing can be put there."""
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    (device, *_) = jax.devices()
    devices = np.full(math.prod(shape), device).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spread_over(model: CausalLM, mesh: Mesh) -> None:
    """Say of every abstract leaf of a model where it would lie.

    Args:
      model: Of `jax.ShapeDtypeStruct`s; changed.
      mesh: With the axes of `jaxtune.models.placement`, of devices or without any.

    Raises:
      ValueError: The mesh does not divide the model.
    """
    check_mesh(model.config, mesh)
    model.model.mesh = model.carried.mesh = mesh

    def placed(array: Any, place: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    leaves = [
        (path, leaf.replace(jax.tree.map(placed, value, place_of(path, value, mesh))))
        for path, leaf in nnx.to_flat_state(nnx.state(model))
        for value in [leaf.get_value()]
    ]
    nnx.update(model, nnx.from_flat_state(leaves))


def received(model: CausalLM, accumulation: int) -> Received:
    """What a device of the mesh receives, where parts are passed on around a ring.

    (f - 1) / f of what is split over f devices of "fsdp"; 2 (n - 1) / n of a gradient that n sum.
    What "tensor" exchanges of the activations is not counted.

    Args:
      model: Of `spread_over`.
      accumulation: Micro-batches a step.
    """
    mesh = model.carried.mesh
    _, trainable, frozen = split(model)
    parts, devices = mesh.shape[FSDP], devices_of(mesh)
    weights = 0.0
    for path, leaf in nnx.to_flat_state(frozen):
        passes = 2 * accumulation if is_stacked(path) else 1
        for array in jax.tree.leaves(leaf.get_value()):
            if any(FSDP in names for names in names_at(array.sharding.spec)):
                weights += passes * nbytes(array)
    return Received(
        weights=weights * (parts - 1) / parts,
        gradients=2 * (devices - 1) / devices * 4 * sum(a.size for a in jax.tree.leaves(trainable)),
    )
