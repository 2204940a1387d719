"""A device's part of a weight, and the weight that all parts give together."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec

from jaxtune.models.naming import is_stacked
from jaxtune.models.placement import FSDP
from jaxtune.models.sharding_rules import is_spec, names_at
from pallas_kernels import NF4
from pallas_kernels.nf4 import Bank
from pallas_kernels.pytree import pytree

T = TypeVar("T")


@pytree(data=("value",), meta=("axes", "stacked"))
@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """What a device of the axis "fsdp" has of a weight, inside `jax.shard_map`.

    The gradient of `whole` and `layer` is a device's part of the sum over all of them.

    Attributes:
      value: An array, `NF4` or `Bank`, whose arrays are parts.
      axes: For each of these arrays, the axis that is split; None: it is whole.
      stacked: It holds all layers, of which one is put together at a time.
    """

    value: Any
    axes: tuple[int | None, ...]
    stacked: bool

    def whole(self) -> Any:
        """The weight."""
        return _joined(self.value, self.axes)

    def layer(self, index: jax.Array) -> Any:
        """One layer: a matrix, or a stack of that layer alone, of which 4 bits an element travel.

        Args:
          index: Of the layer; may be traced.
        """
        if isinstance(self.value, Bank):
            return self._bank_layer(self.value, index)
        if isinstance(self.value, NF4):
            return _joined(_one_layer(self.value, index), self.axes)
        return _joined(lax.dynamic_index_in_dim(self.value, index), self.axes)[0]

    def of_slice(self, part: Any) -> Any:
        """A layer, of a device's part of it that was cut out of the stack already."""
        return _joined(part[None], self.axes)[0]

    def _bank_layer(self, bank: Bank, index: jax.Array) -> Bank:
        """A bank whose stacks have one layer each; the one that the layer is not in is zero."""
        quantized = jnp.asarray(bank.kinds)[index]
        slot = jnp.asarray(bank.slots, jnp.int32)[index]

        def dense() -> Any:
            return _joined(lax.dynamic_index_in_dim(bank.dense, slot), self.axes[:1])

        def small() -> Any:
            return _joined(_one_layer(bank.quantized, slot), self.axes[1:])

        # All devices are at the same layer, and so in the same branch.
        return Bank(
            dense=lax.cond(quantized, lambda: _zeros(dense), dense),
            quantized=lax.cond(quantized, small, lambda: _zeros(small)),
            kinds=bank.kinds,
            slots=(0,) * len(bank.slots),
        )


def is_shard(value: object) -> TypeGuard[Shard]:
    """Whether a weight is a device's part."""
    return isinstance(value, Shard)


def as_shards(state: nnx.State, specs: nnx.State) -> nnx.State:
    """Mark what is split over "fsdp", inside `jax.shard_map`.

    Args:
      state: Of a model; its arrays are a device's parts.
      specs: The split of each array.

    Returns:
      The state with `Shard`s.
    """
    marked = []
    for (path, leaf), (_, spec) in zip(
        nnx.to_flat_state(state), nnx.to_flat_state(specs), strict=True
    ):
        axes = tuple(map(_split_axis, jax.tree.leaves(spec.get_value(), is_leaf=is_spec)))
        if any(axis is not None for axis in axes):
            shard = Shard(value=leaf.get_value(), axes=axes, stacked=is_stacked(path))
            leaf = leaf.replace(shard)
        marked.append((path, leaf))
    return nnx.from_flat_state(marked)


def with_whole_ends(state: T) -> T:
    """Put together what is no layer of the stack: embedding and head."""

    def whole(leaf: Any) -> Any:
        return leaf.whole() if is_shard(leaf) and not leaf.stacked else leaf

    return jax.tree.map(whole, state, is_leaf=is_shard)


def _split_axis(spec: PartitionSpec) -> int | None:
    """The axis of an array that is split over "fsdp"."""
    return next((axis for axis, names in enumerate(names_at(spec)) if FSDP in names), None)


def _joined(value: Any, axes: Sequence[int | None]) -> Any:
    leaves, structure = jax.tree.flatten(value)
    return structure.unflatten(map(_join, leaves, axes))


def _join(part: jax.Array, axis: int | None) -> jax.Array:
    if axis is None:
        return part
    lead = part.shape[:axis]
    if math.prod(lead) > 1:
        return lax.all_gather(part, FSDP, axis=axis, tiled=True)
    # As the first axis, parts follow each other in memory.
    whole = lax.all_gather(part.reshape(part.shape[axis:]), FSDP, tiled=True)
    return whole.reshape(*lead, *whole.shape)


def _one_layer(stack: NF4, index: jax.Array) -> NF4:
    """The stack of one layer."""

    def one(array: Any) -> Any:
        return lax.dynamic_index_in_dim(array, index)

    nested = stack.nested
    if nested is not None:
        nested = dataclasses.replace(nested, absmax=one(nested.absmax), offset=one(nested.offset))
    return dataclasses.replace(
        stack, codes=one(stack.codes), absmax=one(stack.absmax), nested=nested
    )


def _zeros(make: Any) -> Any:
    """Zeros of the shapes that a function would give."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(make))
