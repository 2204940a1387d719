"""Where the arrays of a model lie: every leaf where its rule says."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxtune.models.decoder import CausalLM
from jaxtune.models.placement import AnyMesh
from jaxtune.models.sharding_rules import is_spec, second_axis, specs_of


def state_specs(state: nnx.State, mesh: AnyMesh) -> nnx.State:
    """The split of every array of a state, in a state of the same structure.

    Args:
      state: Of a model; abstract leaves too.
      mesh: Of `jaxtune.models.placement.mesh_of`.
    """
    return nnx.from_flat_state(
        [
            (path, leaf.replace(specs_of(path, leaf.get_value(), mesh)))
            for path, leaf in nnx.to_flat_state(state)
        ]
    )


def place_of(path: Any, value: Any, mesh: Mesh | None) -> Any:
    """The `NamedSharding` of each array of a leaf; None, JAX's default device, without a mesh."""
    if mesh is None:
        return None
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs_of(path, value, mesh), is_leaf=is_spec
    )


def part_place(shape: tuple[int, ...], mesh: Mesh | None) -> NamedSharding | None:
    """Where [rows, N] of a weight go that is being read: every device gets some of the columns.

    So each byte leaves the host once for each copy of the weights, and the devices exchange what
    belongs to others.
    """
    return None if mesh is None else NamedSharding(mesh, second_axis(shape, mesh))


def place_model(model: CausalLM, mesh: Mesh | None) -> None:
    """Bring every leaf of a model to where its rule says; nothing moves that is there.

    Args:
      model: Its variables are bound to the placed arrays.
      mesh: Of `jaxtune.models.placement.mesh_of`; None: everything stays.
    """
    model.model.mesh = model.carried.mesh = mesh
    if mesh is None:
        return
    state = nnx.state(model)
    placed = [
        (path, leaf.replace(jax.device_put(value, place_of(path, value, mesh))))
        for path, leaf in nnx.to_flat_state(state)
        for value in (leaf.get_value(),)
    ]
    nnx.update(model, nnx.from_flat_state(placed))
