"""A batch of an evaluation: its losses and predictions, logits a chunk of positions at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxtune.data.batch import IGNORE, Batch, shift_labels
from jaxtune.models.decoder import CausalLM
from jaxtune.models.per_device import spread_of
from jaxtune.models.placement import batch_specs, row_spec
from jaxtune.models.shards import with_whole_ends
from jaxtune.training.step import head_loss, merge
from pallas_kernels import linear_cross_entropy_rows

# Logits that exist at a time, bytes.
CHUNK_BYTES = 256 << 20

# (logits [B, C, V], labels [B, C]) -> arrays [B, C, ...]
Preprocess = Callable[[Any, Any], Any]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("label_smoothing", "preprocess"))
def evaluation_step(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    preprocess: Preprocess | None = None,
) -> tuple[dict[str, jax.Array], Any]:
    """Sums over the tokens of a batch, and what is predicted at each position.

    No dropout, no gradient, and nothing changes. Compiled once for a structure and a shape.

    Args:
      graphdef: From `split`; static.
      trainable: From `split`.
      frozen: From `split`.
      batch: Of layout "causal".
      label_smoothing: As in `step.loss`.
      preprocess: JAX function of logits and labels, each position by itself; None: no predictions.

    Returns:
      Sums of `loss`, `entropy` (of the distribution), `correct` (the label is the likeliest token)
      and `tokens` over the labels that count; and the predictions, arrays [B, T, ...], or None.
    """
    batch.check()
    sums_of = functools.partial(_evaluated, label_smoothing, preprocess)
    spread = spread_of(graphdef, trainable, frozen)
    if spread is None:
        return sums_of(graphdef, trainable, frozen, batch)

    def over_devices(*parts: Any) -> tuple[dict[str, jax.Array], Any]:
        sums, predictions = sums_of(*parts)
        return spread.total(sums), predictions

    return spread.run(
        over_devices,
        (PartitionSpec(), row_spec(0)),
        (trainable, frozen),
        (batch,),
        (batch_specs(batch, spread.mesh),),
    )


def _evaluated(
    label_smoothing: float,
    preprocess: Preprocess | None,
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: Batch,
) -> tuple[dict[str, jax.Array], Any]:
    """The results of one device's rows."""
    model = merge(graphdef, with_whole_ends(trainable), with_whole_ends(frozen))
    hidden, _ = model.model(jnp.asarray(batch.input_ids))
    labels = jnp.asarray(batch.labels)
    wanted = shift_labels(labels, None)
    losses = head_loss(linear_cross_entropy_rows, model, hidden, wanted, label_smoothing)
    entropy, correct, predictions = _by_chunks(
        functools.partial(_looked_at, model, preprocess), model.config.vocab_size
    )(hidden, labels, wanted)
    counted = wanted != IGNORE
    sums = {
        "loss": losses.sum(),
        "entropy": jnp.where(counted, entropy, 0).sum(),
        "correct": (counted & correct).sum(),
        "tokens": counted.sum(),
    }
    return sums, predictions


def _looked_at(
    model: CausalLM,
    preprocess: Preprocess | None,
    hidden: Float[Array, "B C D"],
    labels: Int[Array, "B C"],
    wanted: Int[Array, "B C"],
) -> tuple[Array, Array, Any]:
    """Of a chunk: entropy, whether the wanted token is the likeliest, and the predictions."""
    z = model.logits(hidden)
    log_p = jax.nn.log_softmax(z)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    predictions = None if preprocess is None else _predicted(preprocess, z, labels)
    return entropy, z.argmax(-1) == wanted, predictions


def _predicted(preprocess: Preprocess, logits: jax.Array, labels: jax.Array) -> Any:
    """The user's function of a chunk, held to its contract."""
    name = "`preprocess_logits_for_metrics`"
    try:
        made = preprocess(logits, labels)
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"{name} must be a function of JAX arrays that can be compiled; got {error}. Write it "
            "with jax.numpy: lambda logits, labels: logits.argmax(axis=-1)."
        ) from error
    for leaf in jax.tree.leaves(made):
        shape = getattr(leaf, "shape", ())
        if shape[:2] != labels.shape:
            raise ValueError(
                f"{name} gets a chunk of positions and must return arrays [batch, positions, ...] "
                f"of the same; got {shape} for {labels.shape}. Treat each position by itself, and "
                "shift or average in compute_metrics."
            )
    return made


def _by_chunks(function: Callable[..., Any], vocab_size: int) -> Callable[..., Any]:
    """The same function, run on as many positions at a time as `CHUNK_BYTES` of logits hold."""

    def run(*arrays: jax.Array) -> Any:
        rows, length = arrays[0].shape[:2]
        chunk = max(1, min(length, CHUNK_BYTES // (4 * rows * vocab_size)))
        count = -(-length // chunk)
        if count == 1:
            return function(*arrays)

        def cut(array: jax.Array) -> jax.Array:
            rest = [(0, 0)] * (array.ndim - 2)
            full = jnp.pad(array, [(0, 0), (0, count * chunk - length), *rest])
            return jnp.moveaxis(full.reshape(rows, count, chunk, *array.shape[2:]), 1, 0)

        def joined(array: jax.Array) -> jax.Array:
            whole = jnp.moveaxis(array, 0, 1)
            return whole.reshape(rows, count * chunk, *array.shape[3:])[:, :length]

        made = jax.lax.map(lambda parts: function(*parts), tuple(map(cut, arrays)))
        return jax.tree.map(joined, made)

    return run
