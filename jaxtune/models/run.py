"""A run: the stacked layers, scanned period by period, plus a tail.

Trained leaves travel as the scan's inputs, so that their gradients come back stacked and each
layer's is written once. Everything else stays whole and is read by layer index inside the
(rematerialised) body: no period-shaped copy is made, and the backward pass keeps no slice of it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool

from jaxtune.config import Remat as Remat
from jaxtune.layers.cache import KVCache
from jaxtune.layers.residuals import OFFLOADING, PLANS
from jaxtune.models.shards import Shard, is_shard
from pallas_kernels.attention import CUDNN
from pallas_kernels.nf4 import is_stack

LAYER_INPUT = "layer_input"


def _keeping(names: Sequence[str]) -> Callable[..., Any]:
    """Keep what has one of the names, and what cuDNN gives: its statistics are out of their reach.

    Every plan that keeps anything keeps what attention gives.
    """
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def kept(primitive: Any, *arguments: Any, **parameters: Any) -> Any:
        return primitive.name.startswith(CUDNN) or named(primitive, *arguments, **parameters)

    return kept


_offload = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
)
POLICIES = {plan: _keeping(names) if names else None for plan, names in PLANS.items()}
POLICIES |= dict.fromkeys(OFFLOADING, _offload)
Carry = tuple[jax.Array, KVCache | None]
Layer = Callable[[Any, jax.Array, KVCache | None, jax.Array, int], Carry]


def run_layers(
    block: nnx.Module,
    layer: Layer,
    x: jax.Array,
    cache: KVCache | None,
    layers: int,
    period: int,
    remat: Remat,
) -> tuple[jax.Array, KVCache | None]:
    """Apply `layers` layers to `x`; compile time does not grow with their number.

    Args:
      block: A module whose leaves are stacked, [L, ...].
      layer: `layer(block of one layer, x, cache, index, place in the period) -> (x, cache)`.
      x: Hidden states, [B, T, D].
      cache: Carried from layer to layer, updated in place by the layer's index; None in training.
      layers: L.
      period: Layers a period; what differs inside it is static.
      remat: "full" keeps each layer's input only and computes the rest again in the backward
        pass; "none" keeps the results of every product and of attention, so that only what is
        elementwise is computed again, and never a dequantised weight; "gate_up" keeps of these
        what attention and the MLP's two wide products give, and "attention" the former alone;
        "offload" is "full" with the inputs kept in pinned host memory; "least" is that with the
        MLP in pieces of the row (`jaxtune.layers.mlp.in_pieces`).

    Returns:
      The hidden states after the last layer, and the cache.
    """
    graphdef, trained, fixed = nnx.split(block, nnx.Param, ...)

    def apply(place: int, carry: Carry, leaves: nnx.State, index: jax.Array) -> Carry:
        here = jax.tree.map(functools.partial(_of_layer, index=index), fixed, is_leaf=_is_whole)
        leaves = jax.tree.map(_joined, leaves, is_leaf=is_shard)
        x, cache = carry
        if remat in OFFLOADING:
            # Named inside the body: the backward pass begins at the name, and the device's own
            # copy of the input is no residual.
            x = checkpoint_name(x, LAYER_INPUT)
        return layer(nnx.merge(graphdef, leaves, here), x, cache, index, place)

    apply = jax.checkpoint(apply, prevent_cse=False, static_argnums=0, policy=POLICIES[remat])

    def whole_period(carry: Carry, inputs: tuple[nnx.State, jax.Array]) -> tuple[Carry, None]:
        leaves, first = inputs
        if head is trained:
            # The leaf itself, not a slice of it: the backward pass then reads the stack that there
            # is, and no second one is made of what it keeps.
            return apply(0, carry, leaves, first), None
        for place in range(period):
            mine = jax.tree.map(lambda a, place=place: a[place], leaves)
            carry = apply(place, carry, mine, first + place)
        return carry, None

    periods = layers // period
    scanned = periods * period
    head = trained
    if period > 1 or scanned < layers:
        head = jax.tree.map(lambda a: a[:scanned].reshape(periods, period, *a.shape[1:]), trained)
    first = jnp.arange(0, scanned, period, dtype=jnp.int32)
    carry, _ = lax.scan(whole_period, (x, cache), (head, first))
    for index in range(scanned, layers):
        mine = jax.tree.map(lambda a, index=index: a[index], trained)
        carry = apply(index - scanned, carry, mine, jnp.int32(index))
    return carry


def finite_layers(
    block: nnx.Module, layer: Layer, x: jax.Array, layers: int, period: int
) -> tuple[jax.Array, Bool[Array, " L"]]:
    """Apply `layers` layers, one after the other, and say which outputs are finite.

    For a run that has failed: it compiles every layer by itself.

    Args:
      block: As in `run_layers`.
      layer: Likewise.
      x: Hidden states, [B, T, D].
      layers: L.
      period: Layers a period.

    Returns:
      The hidden states after the last layer, and whether those after each are finite.
    """
    graphdef, trained, fixed = nnx.split(block, nnx.Param, ...)
    finite = []
    for index in range(layers):
        mine = jax.tree.map(lambda a, index=index: a[index], trained)
        here = jax.tree.map(
            functools.partial(_of_layer, index=jnp.int32(index)), fixed, is_leaf=_is_whole
        )
        x, _ = layer(nnx.merge(graphdef, mine, here), x, None, jnp.int32(index), index % period)
        finite.append(jnp.isfinite(x).all())
    return x, jnp.stack(finite)


def _of_layer(value: Any, index: jax.Array) -> Any:
    """One layer's slice; a quantised stack stays whole, for its kernel finds the layer in it.

    Of what is spread over devices, that layer is put together: inside the rematerialised body, so
    that the backward pass does it again and keeps none.
    """
    if is_shard(value):
        return value.layer(index)
    return value if is_stack(value) else lax.dynamic_index_in_dim(value, index, keepdims=False)


def _joined(value: Any) -> Any:
    """A trained leaf of one layer, put together if it is spread over devices."""
    return value.of_slice(value.value) if isinstance(value, Shard) else value


def _is_whole(value: Any) -> bool:
    return is_stack(value) or is_shard(value)
