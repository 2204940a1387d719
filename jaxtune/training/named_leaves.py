"""The arrays of a tree by name: how they are told apart in a checkpoint."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune import processes
from jaxtune.models.placement import put


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path.

    Args:
      tree: A model's trained arrays, an optimizer's state, or either of `jax.eval_shape`.

    Returns:
      {"model.layers.self_attn.q_proj.lora_A": ...}, in the order of the leaves.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def in_host_memory(tree: Any) -> Any:
    """The same tree with arrays of NumPy's own: a step that consumes the tree leaves them alone.

    Args:
      tree: Of arrays; all processes ask for one that is spread over them.

    Returns:
      Copies; on a CPU, too, where NumPy could look into the device's memory.
    """
    jax.tree.map(_start_copy, tree)
    return jax.tree.map(processes.on_host, tree)


def with_values(tree: Any, values: Mapping[str, np.ndarray]) -> Any:
    """The tree with other values, which lie where its own do.

    Args:
      tree: Of arrays on their devices.
      values: Of each leaf by its name, in its shape and dtype.

    Returns:
      A tree of the same structure.
    """
    named = named_leaves(tree)
    placed = [_placed(leaf, values[name]) for name, leaf in named.items()]
    return jax.tree.structure(tree).unflatten(placed)


def _start_copy(leaf: Any) -> None:
    """Start a copy to the host, so that the copies of all leaves overlap."""
    start: Callable[[], None] | None = getattr(leaf, "copy_to_host_async", None)
    if start is not None:
        start()


def _placed(leaf: jax.Array, value: np.ndarray) -> jax.Array:
    plain = leaf.sharding.memory_kind == jax.devices()[0].default_memory().kind
    if plain and len(leaf.sharding.device_set) == 1:
        # Not bound to its device, as an array that was just made: a mesh may still take it.
        return jnp.array(value)
    return put(value, leaf.sharding)
