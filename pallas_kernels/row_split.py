"""Kernels on a mesh: without a rule, XLA gathers a kernel's operands and runs it on each device."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def split_rows(function: Callable[..., Any], *operands: Any) -> Any:
    """Call a function whose rows are independent, on each device for the rows that it has.

    Args:
      function: Of arrays; rows stand on the first axis of every operand and result, but for
        operands without an axis.
      operands: Pytrees of arrays; the first array decides over which mesh axis rows are split.

    Returns:
      What `function` returns, a pytree of arrays.
    """
    leaves, structure = jax.tree.flatten(operands)

    def flat(*leaves: Any) -> Any:
        return function(*jax.tree.unflatten(structure, leaves))

    def partition(mesh: Mesh, arguments: Any, results: Any) -> tuple[Any, ...]:
        spec = arguments[0].sharding.spec
        rows = PartitionSpec(spec[0]) if spec else PartitionSpec()

        def place(x: Any) -> NamedSharding:
            return NamedSharding(mesh, rows if x.ndim else PartitionSpec())

        return mesh, flat, jax.tree.map(place, results), tuple(map(place, arguments))

    partitioned = custom_partitioning(flat)
    partitioned.def_partition(partition, sharding_rule=_rule)

    # A partitioned call cannot be batched, so under vmap the function itself is.
    @custom_vmap
    def call(*leaves: Any) -> Any:
        return partitioned(*leaves)

    @call.def_vmap
    def _(size: int, batched: Any, *leaves: Any) -> tuple[Any, Any]:
        del size
        axes = tuple(0 if one else None for one in batched)
        results = jax.vmap(flat, in_axes=axes)(*leaves)
        return results, jax.tree.map(lambda _: True, results)

    return call(*leaves)


def _rule(mesh: Mesh, operands: Any, results: Any) -> str:
    """Shardy's rule: the first axes are one factor, every other axis is its own."""
    del mesh
    sides = []
    for side, types in (("o", operands), ("r", results)):
        names = [
            " ".join(["b", *(f"{side}{n}_{axis}" for axis in range(1, len(one.shape)))])
            if one.shape
            else ""
            for n, one in enumerate(types)
        ]
        sides.append(", ".join(names))
    return " -> ".join(sides)
