"""Where arrays live: on each device of a mesh, with rows split; an embedding in host memory."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtune.errors import NotBuiltYetError
from jaxtune.layers.host_memory import DEVICE, HOST, in_host_memory
from jaxtune.layers.residuals import EMBEDDING_ON_HOST
from jaxtune.layers.variables import Frozen
from jaxtune.models.decoder import CausalLM


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


def split_rows(batch: Any, mesh: Mesh | None) -> Any:
    """Spread the rows of a batch's arrays over the mesh.

    Args:
      batch: A pytree of arrays, [..., B, T] with a multiple of the devices as B; scalars are
        copied to each.
      mesh: Of one axis, or None.

    Returns:
      The batch on the devices; itself without a mesh.
    """
    if mesh is None:
        return batch

    def put(array: Any) -> jax.Array:
        before = np.ndim(array) - 2
        spec = () if before < 0 else (*[None] * before, mesh.axis_names[0])
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(put, batch)


def devices_of(mesh: Mesh | None) -> int:
    """Devices that take part in a step."""
    return 1 if mesh is None else mesh.size


def embedding_moves(model: CausalLM) -> bool:
    """Whether a plan may keep the embedding in host memory.

    That is, the head is another matrix, nothing trains it, and one device has all rows of a step.
    """
    weight, mesh = model.model.embed_tokens.weight, model.carried.mesh
    return isinstance(weight, Frozen) and not model.config.tie_word_embeddings and mesh is None


def place_embedding(model: CausalLM) -> None:
    """Put the embedding where the model's plan wants it; its values stay.

    Args:
      model: Changed in place, if at all.
    """
    embedding = model.model.embed_tokens
    value = embedding.weight.get_value()
    wanted = embedding_moves(model) and model.model.remat in EMBEDDING_ON_HOST
    if in_host_memory(value) != wanted:
        moved = jax.device_put(value, HOST if wanted else DEVICE)
        embedding.weight = Frozen(moved)  # pyrefly: ignore[bad-assignment]
