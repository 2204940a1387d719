"""The tensors of a leaf: what PEFT holds apart, jaxtune holds as one stack."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtune.models.naming import is_stacked


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """How a leaf is cut: into one tensor a layer, without the rows or columns that pad it.

    Attributes:
      layers: L; None for a leaf that is one tensor.
      shape: Of one layer's part of the leaf.
      ranks: Rank of each layer, where the leaf is a LoRA matrix; rows of each layer, where it is
        DoRA's magnitudes; None elsewhere.
      rank_axis: Which axis of `shape` the ranks count: 0 for A [R, in], 1 for B [out, R].
    """

    layers: int | None
    shape: tuple[int, ...]
    ranks: tuple[int, ...] | None = None
    rank_axis: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor; 0 for a layer without an adapter."""
        whole = math.prod(self.shape)
        if self.ranks is None:
            return (whole,) * (self.layers or 1)
        return tuple(whole // self.shape[self.rank_axis] * rank for rank in self.ranks)

    @property
    def _widths(self) -> tuple[int, ...] | None:
        """Columns of each B; None where rows of the leaf are rows of the tensors."""
        if self.ranks is None or self.rank_axis == 0:
            return None
        return None if set(self.ranks) <= {0, self.shape[1]} else self.ranks

    def rows(self, leaf: Float[Array, "..."]) -> Float[Array, "L N"]:
        """The tensors' elements, one tensor a row, in the tensor's own order and then zeros.

        That is the leaf itself but for a stack of Bs with different ranks, [out, r] each, whose
        elements stand r in a row: they are moved together, so that blocks fall as PEFT's do.
        """
        stack = leaf.reshape(self.layers or 1, -1)
        if self._widths is None:
            return stack
        width = jnp.asarray(self._widths)[:, None]
        place = jnp.arange(stack.shape[1])
        row, column = jnp.divmod(place, jnp.maximum(width, 1))
        source = jnp.clip(row * self.shape[1] + column, 0, stack.shape[1] - 1)
        moved = jnp.take_along_axis(stack, source, axis=1)
        return jnp.where(place < self.shape[0] * width, moved, 0)

    def leaf(self, rows: Float[Array, "L N"]) -> Float[Array, "..."]:
        """The inverse of `rows`; padding is 0."""
        lead = () if self.layers is None else (self.layers,)
        if self._widths is None:
            return rows.reshape(*lead, *self.shape)
        width = jnp.asarray(self._widths)[:, None, None]
        row, column = jnp.arange(self.shape[0])[:, None], jnp.arange(self.shape[1])
        source = (row * width + jnp.minimum(column, width - 1)).reshape(rows.shape[0], -1)
        moved = jnp.take_along_axis(rows, jnp.maximum(source, 0), axis=1)
        return jnp.where(column < width, moved.reshape(*lead, *self.shape), 0)


def tensors_of(parameters: Any) -> dict[str, Tensors]:
    """The tensors of each leaf, by the leaf's name, in the order of the leaves.

    Args:
      parameters: The trainable tree of a model, or any other pytree of arrays: without a path that
        begins with `model.layers` a leaf is one tensor. What `optax.partition` and `optax.masked`
        leave out is no leaf.

    Returns:
      {"model.layers.self_attn.q_proj.lora_A": ...}.
    """
    found = {}
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        parameters, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    for path, node in leaves:
        if not jax.tree.leaves(node):
            continue  # a variable that holds optax's MaskedNode
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        metadata = node.get_metadata() if isinstance(node, nnx.Variable) else {}
        shape = jnp.shape(node.get_value() if isinstance(node, nnx.Variable) else node)
        stacked = is_stacked(tuple(name.split(".")))
        found[name] = Tensors(
            layers=shape[0] if stacked else None,
            shape=tuple(shape[1:] if stacked else shape),
            ranks=metadata.get("ranks"),
            rank_axis=1 if name.endswith("lora_B") else 0,
        )
    return found
