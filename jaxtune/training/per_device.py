"""A computation over a mesh in which each device works by itself on its own rows.

Kernels are opaque to the compiler, which would gather their operands. Inside `jax.shard_map` they
see what their device has. Weights that are split over "fsdp" arrive there as `Shard`s, of which
the decoder puts one layer together at a time. What "tensor" splits is left to the compiler.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtune.data.batch import Batch, MicroBatches
from jaxtune.models.decoder import CausalLM
from jaxtune.models.placement import AXES, ROW_AXES, TENSOR, batch_specs
from jaxtune.models.sharding import state_specs
from jaxtune.models.sharding_rules import is_spec, names_at
from jaxtune.models.shards import as_shards, is_shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A model over a mesh.

    Attributes:
      mesh: The devices.
      graphdef: Of the model as one device sees it.
      trained: The split of its trained arrays.
      frozen: The split of the others.
    """

    mesh: Mesh
    graphdef: nnx.GraphDef
    trained: nnx.State
    frozen: nnx.State

    def run(
        self,
        function: Callable[..., Any],
        out_specs: Any,
        trainable: nnx.State,
        frozen: nnx.State,
        batch: Batch | MicroBatches,
        *others: Any,
    ) -> Any:
        """Call a function on each device.

        Args:
          function: Of (graphdef, trainable, frozen, batch, *others), a device's own.
          out_specs: Over which axes the devices' results are parts of one.
          trainable: On the mesh, like all that follows.
          frozen: Likewise.
          batch: Its rows are split.
          others: The same on every device.

        Returns:
          What the function gives, over the mesh.
        """
        if not self._manual_axes:
            return function(self.graphdef, trainable, frozen, batch, *others)
        trained_specs, frozen_specs = self.manual(self.trained), self.manual(self.frozen)

        def on_device(trainable: Any, frozen: Any, batch: Any, *others: Any) -> Any:
            return function(
                self.graphdef,
                as_shards(trainable, trained_specs),
                as_shards(frozen, frozen_specs),
                self._with_own_draws(batch),
                *others,
            )

        in_specs = (
            trained_specs,
            frozen_specs,
            self.manual(batch_specs(batch, self.mesh)),
            *(PartitionSpec() for _ in others),
        )
        spread = jax.shard_map(
            on_device,
            mesh=self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(self._manual_axes),
            # What kernels and loops carry is not annotated.
            check_vma=False,
        )
        return spread(trainable, frozen, batch, *others)

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
        """The sum over all devices of a gradient, each array split as the parameter is.

        Over the axis that a parameter is split over, its gradient has been summed already.
        """

        def total(part: jax.Array, spec: PartitionSpec) -> jax.Array:
            done = {name for names in names_at(spec) for name in names}
            return self.total(part, but=done)

        plain = jax.tree.map(
            lambda leaf: leaf.value if is_shard(leaf) else leaf, gradient, is_leaf=is_shard
        )
        return jax.tree.map(total, plain, self.manual(self.trained))

    def _with_own_draws(self, batch: Batch | MicroBatches) -> Batch | MicroBatches:
        """The batch with a dropout key that no other device has."""
        if batch.dropout_key is None:
            return batch
        rows = tuple(axis for axis in ROW_AXES if axis in self._manual_axes)
        key = jax.random.fold_in(batch.dropout_key, lax.axis_index(rows))
        return dataclasses.replace(batch, dropout_key=key)

    def placed(self, tree: nnx.State) -> nnx.State:
        """Arrays like the trained ones, where those lie."""
        return jax.tree.map(
            lambda leaf, spec: lax.with_sharding_constraint(leaf, NamedSharding(self.mesh, spec)),
            tree,
            self.trained,
        )


def spread_of(graphdef: nnx.GraphDef, trainable: nnx.State, frozen: nnx.State) -> Spread | None:
    """How a model is spread over devices; None: it is not.

    Args:
      graphdef: From `split`, like the others.
      trainable: Its arrays.
      frozen: Its other arrays.
    """
    model: CausalLM = nnx.merge(graphdef, trainable, frozen)
    mesh = model.model.mesh
    if mesh is None:
        return None
    if mesh.shape[TENSOR] == 1:
        model.model.mesh = None
    return Spread(
        mesh=mesh,
        graphdef=nnx.split(model, nnx.Param, ...)[0],
        trained=state_specs(trainable, mesh),
        frozen=state_specs(frozen, mesh),
    )
