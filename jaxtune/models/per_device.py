"""A computation over a mesh in which each device works by itself on its own rows.

Kernels are opaque to the compiler, which would gather their operands. Inside `jax.shard_map` they
see what their device has. Weights that are split over "fsdp" arrive there as `Shard`s, of which
the decoder puts one layer together at a time. What "tensor" splits is left to the compiler.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune.models.decoder import CausalLM
from jaxtune.models.placement import AXES, ROW_AXES, TENSOR
from jaxtune.models.sharding import state_specs
from jaxtune.models.sharding_rules import is_spec, names_at
from jaxtune.models.shards import as_shards, is_shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A model over a mesh.

    Attributes:
      mesh: The devices.
      graphdef: Of the model as one device sees it.
      splits: Of the arrays of each of its states, in their order.
    """

    mesh: Mesh
    graphdef: nnx.GraphDef
    splits: tuple[nnx.State, ...]

    def run(
        self,
        function: Callable[..., Any],
        out_specs: Any,
        states: Sequence[nnx.State],
        arguments: Sequence[Any],
        in_specs: Sequence[Any],
    ) -> Any:
        """Call a function on each device.

        Args:
          function: Of (graphdef, *states, *arguments), a device's own.
          out_specs: Over which axes the devices' results are parts of one.
          states: Of the model, on the mesh.
          arguments: Any others.
          in_specs: Over which axes each of these is split.

        Returns:
          What the function gives, over the mesh.
        """
        if not self._manual_axes:
            return function(self.graphdef, *states, *arguments)
        splits = tuple(map(self.manual, self.splits))

        def on_device(states: Any, arguments: Any) -> Any:
            parts = [as_shards(*pair) for pair in zip(states, splits, strict=True)]
            return function(self.graphdef, *parts, *arguments)

        spread = jax.shard_map(
            on_device,
            mesh=self.mesh,
            in_specs=(splits, tuple(map(self.manual, in_specs))),
            out_specs=self.manual(out_specs),
            axis_names=set(self._manual_axes),
            # What kernels and loops carry is not annotated.
            check_vma=False,
        )
        return spread(tuple(states), tuple(arguments))

    @property
    def _manual_axes(self) -> tuple[str, ...]:
        """The axes whose devices work by themselves: all, unless the compiler has one to split.

        Beside such a one, XLA refuses to sum over an axis of a single device.
        """
        if self.mesh.shape[TENSOR] == 1:
            return AXES
        return tuple(axis for axis in ROW_AXES if self.mesh.shape[axis] > 1)

    def manual(self, specs: Any) -> Any:
        """The split that is not left to the compiler."""

        def kept(spec: PartitionSpec) -> PartitionSpec:
            left = [[n for n in names if n in self._manual_axes] for names in names_at(spec)]
            return PartitionSpec(*(tuple(names) or None for names in left))

        return jax.tree.map(kept, specs, is_leaf=is_spec)

    def total(self, tree: Any, but: Collection[str] = ()) -> Any:
        """The sum over the devices that rows are split over; inside `run`.

        Args:
          tree: Of arrays.
          but: Axes to leave out.
        """
        axes = [axis for axis in ROW_AXES if axis in self._manual_axes and axis not in but]
        return lax.psum(tree, tuple(axes))

    def summed(self, gradient: nnx.State) -> nnx.State:
        """The sum over all devices of the gradient of the first state, split as that is.

        Over the axis that a parameter is split over, its gradient has been summed already.
        """

        def total(part: jax.Array, spec: PartitionSpec) -> jax.Array:
            done = {name for names in names_at(spec) for name in names}
            return self.total(part, but=done)

        plain = jax.tree.map(
            lambda leaf: leaf.value if is_shard(leaf) else leaf, gradient, is_leaf=is_shard
        )
        return jax.tree.map(total, plain, self.manual(self.splits[0]))

    def own_key(self, key: jax.Array) -> jax.Array:
        """A key that no other device has that has other rows; inside `run`."""
        rows = tuple(axis for axis in ROW_AXES if axis in self._manual_axes)
        return jax.random.fold_in(key, lax.axis_index(rows)) if rows else key

    def placed(self, tree: nnx.State) -> nnx.State:
        """Arrays like those of the first state, where those lie."""
        return jax.tree.map(
            lambda leaf, spec: lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec)),
            tree,
            self.splits[0],
        )


def spread_of(graphdef: nnx.GraphDef, *states: nnx.State) -> Spread | None:
    """How a model is spread over devices; None: it is not.

    Args:
      graphdef: From a split of the model.
      states: From the same, those that are trained first.
    """
    model: CausalLM = nnx.merge(graphdef, *states)
    mesh = model.model.mesh
    if mesh is None:
        return None
    if mesh.shape[TENSOR] == 1:
        model.model.mesh = None
    return Spread(
        mesh=mesh,
        graphdef=nnx.graphdef(model),
        splits=tuple(state_specs(state, mesh) for state in states),
    )


def everywhere(
    function: Callable[..., Any], graphdef: nnx.GraphDef, state: nnx.State, *arguments: Any
) -> Any:
    """Call a function on every device for the same rows, of which each computes all.

    Args:
      function: Of (graphdef, state, *arguments); its results are the same on every device.
      graphdef: From a split of the model.
      state: Its arrays.
      arguments: Any others.

    Returns:
      What the function gives.
    """
    spread = spread_of(graphdef, state)
    if spread is None:
        return function(graphdef, state, *arguments)
    same = [PartitionSpec()] * len(arguments)
    return spread.run(function, PartitionSpec(), [state], arguments, same)
