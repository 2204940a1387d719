"""The mesh of devices that a model lies on, as users name it, and where a batch's rows go."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

# Rows are split over the first two; frozen weights over the last two, gathered over "fsdp" as they
# are read, and computed with in parts over "tensor".
AXES = DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROW_AXES = (DATA, FSDP)
AUTO = "auto"
# Rules need the sizes of the axes, and no device.
AnyMesh = Mesh | AbstractMesh


def mesh_of(asked: Any) -> Mesh | None:
    """The mesh that a user asked for, with the axes "data", "fsdp" and "tensor".

    Args:
      asked: None; sizes such as {"data": 2, "fsdp": 4}, over the first devices that JAX sees; a
        `jax.sharding.Mesh` with some of these axes, or with one axis of any name, then "data"; or
        "auto", all devices as "data", where nobody knows better.

    Returns:
      None, or the mesh of three axes that the compiler may split arrays over as it sees fit; those
      of `jax.make_mesh` may ask for annotations in the types instead.

    Raises:
      TypeError: None of these.
      ValueError: An unknown axis, a size that is no positive number, or too many devices.
    """
    if asked is None:
        return None
    if isinstance(asked, Mesh):
        return _three_axes(asked)
    if asked == AUTO:
        return mesh_of_sizes({DATA: jax.device_count()})
    if isinstance(asked, Mapping):
        return mesh_of_sizes(asked)
    raise TypeError(
        "`mesh` must be 'auto', a dict of sizes, a jax.sharding.Mesh or None; got "
        f"{asked!r}. Pass {{'data': {jax.device_count()}}}, for example."
    )


def mesh_of_sizes(sizes: Mapping[Any, Any]) -> Mesh:
    """The first devices, as many as the sizes of the axes ask for; see `mesh_of`."""
    _check_axes(sizes)
    for axis, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"a size of `mesh` must be a whole number >= 1; got {axis}={size!r}.")
    shape = [sizes.get(axis, 1) for axis in AXES]
    wanted, devices = math.prod(shape), jax.devices()
    if wanted > len(devices):
        raise ValueError(
            f"`mesh` must have as many devices as JAX sees, or fewer; got {dict(sizes)}, which is "
            f"{wanted}, and {len(devices)} device{'s' if len(devices) > 1 else ''}. Pass sizes "
            f"whose product is {len(devices)}."
        )
    return _named(np.array(devices[:wanted]).reshape(shape))


def _three_axes(mesh: Mesh) -> Mesh:
    """The user's mesh with its axes in our order."""
    names = mesh.axis_names if len(mesh.axis_names) != 1 else (DATA,)
    _check_axes(dict(zip(names, mesh.devices.shape, strict=True)))
    there = [axis for axis in AXES if axis in names]
    ordered = np.transpose(mesh.devices, [names.index(axis) for axis in there])
    sizes = dict(zip(there, ordered.shape, strict=True))
    return _named(ordered.reshape([sizes.get(axis, 1) for axis in AXES]))


def _named(devices: np.ndarray) -> Mesh:
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _check_axes(sizes: Mapping[Any, Any]) -> None:
    unknown = [axis for axis in sizes if axis not in AXES]
    if unknown or not sizes:
        raise ValueError(
            f'the axes of `mesh` must be among {list(AXES)}; got {list(sizes)}. "data" splits '
            'rows, "fsdp" rows and weights, "tensor" the weights\' products.'
        )


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


def held_at(array: jax.Array, place: NamedSharding | None) -> jax.Array:
    """An array that is being traced, and where it is to lie; None: wherever."""
    return array if place is None else jax.lax.with_sharding_constraint(array, place)


def row_spec(before: int) -> PartitionSpec:
    """The split of an array's rows, which so many axes stand before."""
    return PartitionSpec(*[None] * before, ROW_AXES)


def batch_specs(batch: Any, mesh: AnyMesh) -> Any:
    """The split of each array of a batch: [..., B, T] over B, all else copied.

    Raises:
      ValueError: B does not divide over the devices.
    """
    shares = devices_of(mesh)

    def spec(array: Any) -> PartitionSpec:
        before = np.ndim(array) - 2
        if before < 0:
            return PartitionSpec()
        rows = np.shape(array)[-2]
        if rows % shares:
            raise ValueError(
                f"a batch's rows must divide over the {shares} devices that share them; got "
                f"{rows}. Pass {rows - rows % shares or shares} or {-(-rows // shares) * shares}."
            )
        return row_spec(before)

    return jax.tree.map(spec, batch)


def split_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Spread the rows of a batch's arrays over the mesh; a process sends those of its devices.

    Args:
      batch: A pytree of arrays, [..., B, T] with a multiple of `devices_of(mesh)` as B; scalars
        are copied to each.
      mesh: Of `mesh_of`, or None.

    Returns:
      The batch on the devices; itself without a mesh.

    Raises:
      ValueError: B does not divide.
    """
    if mesh is None:
        return batch
    return jax.tree.map(
        lambda array, spec: put(array, NamedSharding(mesh, spec)),
        batch,
        batch_specs(batch, mesh),
    )


def devices_of(mesh: AnyMesh | None) -> int:
    """Devices that rows are split over: "data" times "fsdp"."""
    return 1 if mesh is None else mesh.shape[DATA] * mesh.shape[FSDP]


def splits_weights(mesh: AnyMesh | None) -> bool:
    """Whether a weight is split over devices."""
    return mesh is not None and mesh.shape[FSDP] * mesh.shape[TENSOR] > 1


def described(mesh: Mesh) -> str:
    """The sizes of the axes that have some devices, for a person."""
    sizes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return ", ".join(sizes) or "one device"
