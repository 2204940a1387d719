"""What `jaxtune.training.footprint` needs to know of a model, an optimizer and a batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtune.adapters.modules import projections
from jaxtune.layers.variables import Frozen
from jaxtune.models.decoder import CausalLM, stream_dtype
from jaxtune.models.naming import is_stacked
from jaxtune.models.placement import splits_weights
from jaxtune.training.footprint import ON_CPU, ON_GPU, Held, Shape
from jaxtune.training.step import merge, split
from pallas_kernels.nf4 import is_stack

# Projections that read one input, by the ends of their names.
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def held_by(model: CausalLM, tx: optax.GradientTransformation, *, copied: bool = False) -> Held:
    """What lies on a device between the steps of a run.

    Args:
      model: With its adapter; abstract leaves will do.
      tx: The optimizer.
      copied: As if the device had a copy of every weight, wherever they lie now.

    Returns:
      Bytes.
    """
    graphdef, trainable, frozen = split(model)
    size = nbytes if copied else nbytes_here
    # In pinned host memory between steps or not, on the device during the update.
    state = jax.eval_shape(tx.init, trainable)
    ready = jax.eval_shape(
        lambda trainable, frozen: merge(graphdef, trainable, frozen).model.layers.prepare(
            model.dtype, adapters=True, dropout_key=None
        ),
        trainable,
        frozen,
    )
    trained, whole = size(trainable), nbytes(trainable)
    share = trained / whole if whole else 1.0  # states lie beside their parameters
    gradients = sum(
        math.prod(leaf.shape) * max(leaf.dtype.itemsize, 4) for leaf in jax.tree.leaves(trainable)
    )
    return Held(
        weights=size(frozen) + (0 if copied else _gathered(model)),
        trained=trained,
        optimizer=int(nbytes(state) * share),
        gradients=int(gradients * share),
        prepared=nbytes(ready),
    )


def _gathered(model: CausalLM) -> int:
    """What a device puts together of split weights: embedding, head and a layer."""
    if not splits_weights(model.carried.mesh):
        return 0
    stacked, ends = 0, 0
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if is_stacked(path):
            stacked += nbytes(leaf)
        elif len(jnp.shape(leaf.get_value())) > 1:
            ends += nbytes(leaf)
    return ends + stacked // model.config.num_hidden_layers


def shape_of(
    model: CausalLM, rows: int, length: int, *, accumulation: int, gpu: bool, blockwise: bool
) -> Shape:
    """What a step works on.

    Args:
      model: With its adapter; abstract leaves will do.
      rows: Of a micro-batch on one device.
      length: Tokens a row.
      accumulation: Micro-batches a step.
      gpu: Whether the device is one.
      blockwise: Whether attention is plain JAX there.

    Returns:
      Its sizes.
    """
    leaves = jax.tree.leaves(nnx.state(model.model.layers, Frozen), is_leaf=is_stack)
    return Shape(
        config=model.config,
        rows=rows,
        length=length,
        itemsize=model.dtype.itemsize,
        stream_itemsize=jnp.dtype(stream_dtype(model.dtype)).itemsize,
        ranks=_ranks(model),
        four_bits=any(map(is_stack, leaves)),
        blockwise=blockwise,
        accumulation=accumulation,
        working=ON_GPU if gpu else ON_CPU,
    )


def nbytes(tree: Any) -> int:
    """Bytes of a tree's arrays, abstract ones too."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def nbytes_here(tree: Any) -> int:
    """Bytes of a tree's arrays on one device; of abstract ones all."""

    def shape(leaf: Any) -> tuple[int, ...]:
        sharding = getattr(leaf, "sharding", None)
        return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)

    return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _ranks(model: CausalLM) -> tuple[int, int, int, int]:
    """Ranks of each group, the largest of each projection's layers."""
    found = projections(model)
    sums = [
        sum(
            max(linear.lora.ranks)
            for path, linear in found.items()
            if linear.lora is not None and path.rpartition(".")[2] in names
        )
        for names in GROUPS
    ]
    return sums[0], sums[1], sums[2], sums[3]
