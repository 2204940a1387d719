"""Where arrays live when a model is given a mesh of devices: weights on each, rows split."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxtune.errors import NotBuiltYetError


def data_mesh(mesh: Any) -> Mesh | None:
    """The mesh over whose devices rows are split.

    Args:
      mesh: None, or a `jax.sharding.Mesh` of one axis.

    Returns:
      None, or the mesh with an axis that the compiler may split arrays over as it sees fit; those
      of `jax.make_mesh` may ask for annotations in the types instead.

    Raises:
      TypeError: Not a mesh.
      NotBuiltYetError: A mesh of several axes: weights are not sharded yet.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(
            "`mesh` must be a jax.sharding.Mesh or None; got "
            f"{type(mesh).__name__}. Pass jax.make_mesh((2,), ('data',))."
        )
    if len(mesh.axis_names) != 1:
        raise NotBuiltYetError(
            "`mesh` must have one axis, over which rows are split; got "
            f"{mesh.axis_names}. Sharded weights are not built yet: pass "
            f"jax.make_mesh(({mesh.size},), ('data',))."
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | None) -> NamedSharding | None:
    """A copy on every device of the mesh; None, JAX's default device, without one."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def put(value: Any, place: Sharding | None) -> jax.Array:
    """A host's array on devices.

    Args:
      value: The whole of it, also where this process holds a part of the devices.
      place: Where; None: JAX's default device, which a mesh may still take it from.

    Returns:
      The array. Unlike `jax.device_put` it exchanges nothing with other processes, so that threads
      may call it in any order.
    """
    if place is None or place.is_fully_addressable:
        return jax.device_put(value, place)
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])


def split_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Spread the rows of a batch's arrays over the mesh; a process sends those of its devices.

    Args:
      batch: A pytree of arrays, [..., B, T] with a multiple of the devices as B; scalars are
        copied to each.
      mesh: Of one axis, or None.

    Returns:
      The batch on the devices; itself without a mesh.
    """
    if mesh is None:
        return batch

    def spread(array: Any) -> jax.Array:
        before = np.ndim(array) - 2
        spec = () if before < 0 else (*[None] * before, mesh.axis_names[0])
        return put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(spread, batch)


def devices_of(mesh: Mesh | None) -> int:
    """Devices that take part in a step."""
    return 1 if mesh is None else mesh.size
