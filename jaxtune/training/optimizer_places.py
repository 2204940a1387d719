"""Where an optimizer's state lies on a mesh: beside the parameter that it is of."""

import math
from typing import Any

import jax
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune.models.sharding import state_specs
from jaxtune.models.sharding_rules import is_spec, names_at, split_over
from jaxtune.training.named_leaves import named_leaves


def first_state(tx: optax.GradientTransformation, trainable: nnx.State, mesh: Mesh | None) -> Any:
    """The optimizer's state before the first step; no device makes what is another's.

    Args:
      tx: The optimizer.
      trainable: What it trains, on the mesh.
      mesh: Of the model; None: one device.

    Returns:
      The state.
    """
    if mesh is None:
        return tx.init(trainable)
    return jax.jit(lambda params: placed_state(tx.init(params), params, mesh))(trainable)


def placed_state(state: Any, trainable: nnx.State, mesh: Mesh) -> Any:
    """A state, while it is traced, with each array where it belongs.

    Args:
      state: Of the optimizer; what it keeps in host memory stays there.
      trainable: What it trains.
      mesh: Of the model.

    Returns:
      The state.
    """

    def place(leaf: Any, spec: PartitionSpec) -> Any:
        if jax.typeof(leaf).memory_space == jax.memory.Space.Host:
            return leaf
        return lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten(map(place, leaves, _specs(state, trainable, mesh)))


def kernels_for(trainable: nnx.State, mesh: Mesh | None) -> str:
    """Backend request of an optimizer: a kernel would have all of what is split brought to it."""
    if mesh is None:
        return "auto"
    specs = jax.tree.leaves(state_specs(trainable, mesh), is_leaf=is_spec)
    return "xla" if any(map(any, specs)) else "auto"


def _specs(state: Any, trainable: nnx.State, mesh: Mesh) -> list[PartitionSpec]:
    """The split of each leaf of the state: its parameter's, where it has that shape.

    Blocks of elements, [L, blocks, ...], are split among as many devices as the parameter, if they
    divide: blocks follow each other as the elements do.
    """
    names = named_leaves(trainable)
    split = {
        name: (leaf.shape, spec)
        for (name, leaf), spec in zip(
            names.items(),
            jax.tree.leaves(state_specs(trainable, mesh), is_leaf=is_spec),
            strict=True,
        )
        if any(spec)
    }
    found = []
    for name, leaf in named_leaves(state).items():
        owner = next((own for own in split if f".{own}." in f".{name}."), None)
        found.append(PartitionSpec() if owner is None else _like(leaf.shape, *split[owner], mesh))
    return found


def _like(
    shape: tuple[int, ...], owner: tuple[int, ...], spec: PartitionSpec, mesh: Mesh
) -> PartitionSpec:
    if shape == owner:
        return spec
    axes = tuple(axis for names in names_at(spec) for axis in names)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    divides = len(shape) > 1 and shape[1] % parts == 0
    return split_over([(), axes], mesh) if divides else PartitionSpec()
