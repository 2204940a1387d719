"""The training step: pure functions over the two trees of a model."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxtune.data.batch import IGNORE, Batch, MicroBatches, shift_labels
from jaxtune.models.decoder import CausalLM
from jaxtune.models.per_device import spread_of
from jaxtune.models.placement import batch_specs
from jaxtune.models.shards import with_whole_ends
from jaxtune.optim.loss_scale import LossScaleState
from jaxtune.training.optimizer_places import placed_state
from pallas_kernels import linear_cross_entropy

# Also makes cuDNN's attention choose a backward pass without atomic additions.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
# Of the micro-batches so far: gradient, loss, tokens counted.
_Sums = tuple[nnx.State, jax.Array, jax.Array]
Step = Callable[..., tuple[nnx.State, optax.OptState, dict[str, jax.Array]]]


def split(model: CausalLM) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Take a model apart into its structure, its trained arrays and its frozen ones.

    Args:
      model: Any module; what is an `nnx.Param` is trained.

    Returns:
      (graphdef, trainable, frozen); the structure is hashable and static, the two others are
      pytrees of arrays.
    """
    graphdef, trainable, frozen = nnx.split(model, nnx.Param, ...)
    return graphdef, trainable, frozen


def merge(graphdef: nnx.GraphDef, trainable: nnx.State, frozen: nnx.State) -> CausalLM:
    """Put a model together again; the inverse of `split`."""
    return nnx.merge(graphdef, trainable, frozen)


def loss(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    neftune_noise_alpha: int | float | None = None,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Sum of the token losses of a batch, and the number of tokens in it.

    sum over labels != -100 of (logsumexp(z) - z_label), labels shifted inside their document;
    the mean is the caller's, since only the caller knows the whole accumulation window.

    Args:
      graphdef: From `split`; static.
      trainable: From `split`; differentiate with respect to this.
      frozen: From `split`.
      batch: One micro-batch.
      label_smoothing: e in [0, 1): a token's loss becomes (1 - e) times itself plus e times the
        mean of -log p over the vocabulary.
      neftune_noise_alpha: Strength of the embedding's noise, drawn where the batch has a
        `dropout_key`; None: none.

    Returns:
      (loss_sum, token_count), float32 and int32.
    """
    batch.check()
    model = merge(graphdef, with_whole_ends(trainable), with_whole_ends(frozen))
    segment_ids = None if batch.segment_ids is None else jnp.asarray(batch.segment_ids)
    hidden, _ = model.model(
        jnp.asarray(batch.input_ids),
        segment_ids=segment_ids,
        positions=None if batch.positions is None else jnp.asarray(batch.positions),
        dropout_key=batch.dropout_key,
        neftune_noise_alpha=neftune_noise_alpha,
    )
    return token_losses(model, hidden, batch, label_smoothing=label_smoothing)


def token_losses(
    model: CausalLM,
    hidden: Float[Array, "B T D"],
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The loss of a batch from the decoder's output.

    Args:
      model: Its output head is used.
      hidden: After the final norm.
      batch: Labels and documents.
      label_smoothing: As in `loss`.

    Returns:
      (loss_sum, token_count), as `loss`.
    """
    segment_ids = None if batch.segment_ids is None else jnp.asarray(batch.segment_ids)
    labels = shift_labels(jnp.asarray(batch.labels), segment_ids)
    loss_sum = head_loss(linear_cross_entropy, model, hidden, labels, label_smoothing)
    return loss_sum, jnp.sum(labels != IGNORE)


def head_loss(
    op: Callable[..., jax.Array],
    model: CausalLM,
    hidden: Float[Array, "B T D"],
    labels: Int[Array, "B T"],
    label_smoothing: float,
) -> jax.Array:
    """Hand a model's head and what its configuration says of the loss to one of the losses.

    Args:
      op: `linear_cross_entropy`, or `linear_cross_entropy_rows`.
      model: Its output head is used.
      hidden: After the final norm.
      labels: Shifted.
      label_smoothing: As in `loss`.

    Returns:
      What `op` returns for [B * T] rows.
    """
    return op(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_weight().astype(hidden.dtype),
        labels.reshape(-1),
        softcap=model.config.final_logit_softcapping,
        label_smoothing=label_smoothing,
        backend=model.model.split_kernels,
    )


def window_gradient(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: Batch | MicroBatches,
    accumulation: int,
    *,
    label_smoothing: float = 0.0,
    neftune_noise_alpha: int | float | None = None,
    loss_scale: Float[Array, ""] | None = None,
) -> tuple[nnx.State, Float[Array, ""], Int[Array, ""]]:
    """Gradient of the window's mean loss, that loss, and its token count.

    The gradients of the micro-batches' loss sums are added up, in float32 or wider, and divided
    once by the tokens of the whole window, so the result does not depend on how the window is cut.
    Over a mesh each device adds up its own rows', and one sum over devices follows.

    Args:
      graphdef: From `split`.
      trainable: From `split`.
      frozen: From `split`.
      batch: All rows of the window, [accumulation * B, T]; or its micro-batches.
      accumulation: Micro-batches to cut a `Batch` into, in order.
      label_smoothing: As in `loss`.
      neftune_noise_alpha: As in `loss`.
      loss_scale: The window's mean loss is multiplied by it, and the gradient divided by it again,
        so that float16 can hold what is in between; None: neither.

    Returns:
      (gradient, mean loss, token count); the gradient of a leaf is float32 at least.
    """
    trained = functools.partial(
        loss, label_smoothing=label_smoothing, neftune_noise_alpha=neftune_noise_alpha
    )
    sums = functools.partial(_window_sums, trained, accumulation)
    # Divided by the tokens before the backward pass, as torch does it: float16's range is short.
    factor = None if loss_scale is None else loss_scale / jnp.maximum(tokens_of(batch), 1)
    spread = spread_of(graphdef, trainable, frozen)
    if spread is None:
        gradient, loss_sum, count = sums(graphdef, trainable, frozen, batch, factor)
    else:

        def over_devices(
            graphdef: nnx.GraphDef, trainable: Any, frozen: Any, batch: Any, factor: Any
        ) -> _Sums:
            if batch.dropout_key is not None:
                own = spread.own_key(batch.dropout_key)
                batch = dataclasses.replace(batch, dropout_key=own)
            gradient, loss_sum, count = sums(graphdef, trainable, frozen, batch, factor)
            return spread.summed(gradient), *spread.total((loss_sum, count))

        gradient, loss_sum, count = spread.run(
            over_devices,
            (spread.splits[0], PartitionSpec(), PartitionSpec()),
            (trainable, frozen),
            (batch, factor),
            (batch_specs(batch, spread.mesh), PartitionSpec()),
        )
        gradient = spread.placed(gradient)
    tokens = jnp.maximum(count, 1)
    divisor = tokens if loss_scale is None else loss_scale
    return jax.tree.map(lambda g: g / divisor, gradient), loss_sum / tokens, count


def _window_sums(
    trained: Callable[..., tuple[jax.Array, jax.Array]],
    accumulation: int,
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: Batch | MicroBatches,
    factor: Float[Array, ""] | None,
) -> _Sums:
    """Sums over the micro-batches: the gradient of factor * loss, the losses and the tokens."""

    def scaled(*parts: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        loss_sum, count = trained(*parts)
        return (loss_sum if factor is None else loss_sum * factor), (loss_sum, count)

    value_and_grad = jax.value_and_grad(scaled, argnums=1, has_aux=True)

    def add(total: _Sums, micro: Batch) -> _Sums:
        (_, (loss_sum, count)), gradient = value_and_grad(graphdef, trainable, frozen, micro)
        return jax.tree.map(jnp.add, total, (gradient, loss_sum, count))

    if isinstance(batch, Batch) and accumulation == 1:
        (_, (loss_sum, count)), gradient = value_and_grad(graphdef, trainable, frozen, batch)
        return jax.tree.map(lambda g, p: g.astype(_wide(p)), gradient, trainable), loss_sum, count
    total: _Sums = (
        jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), trainable),
        jnp.zeros((), jnp.float32),
        jnp.zeros((), jnp.int32),
    )
    if isinstance(batch, Batch):
        cut = _cut(batch, accumulation)
        return jax.lax.scan(lambda sums, micro: (add(sums, micro), None), total, cut)[0]
    return _add_micro_batches(add, total, batch)


def tokens_of(batch: Batch | MicroBatches) -> Int[Array, ""]:
    """Labels that a window counts, known before any forward pass."""
    count = jnp.int32(0)
    for rows in (batch,) if isinstance(batch, Batch) else batch.stacks:
        width = rows.input_ids.shape[-1]
        segments = rows.segment_ids
        if segments is not None:
            segments = jnp.asarray(segments).reshape(-1, width)
        labels = jnp.asarray(rows.labels).reshape(-1, width)
        count += jnp.sum(shift_labels(labels, segments) != IGNORE)
    return count


def _add_micro_batches(
    add: Callable[[_Sums, Batch], _Sums], total: _Sums, batch: MicroBatches
) -> _Sums:
    """Add those that are used: a loop of as many rounds a stack, so that no empty one is run."""
    for stack, used in _keyed_stacks(batch):
        total = jax.lax.fori_loop(
            0,
            used,
            lambda i, sums, stack=stack: add(sums, jax.tree.map(lambda array: array[i], stack)),
            total,
        )
    return total


def _keyed_stacks(batch: MicroBatches) -> Iterator[tuple[Batch, Any]]:
    """The stacks, each slot with a dropout key of its own, and how many slots are used."""
    for number, (stack, used) in enumerate(zip(batch.stacks, batch.used, strict=True)):
        if batch.dropout_key is not None:
            key = jax.random.fold_in(batch.dropout_key, number)
            keys = jax.random.split(key, stack.input_ids.shape[0])
            stack = dataclasses.replace(stack, dropout_key=keys)
        yield stack, used


def micro_batches_of(batch: Batch | MicroBatches, accumulation: int) -> Iterator[Batch]:
    """The micro-batches of a window one by one, with the very keys that a step gives them."""
    if isinstance(batch, Batch) and accumulation == 1:
        yield batch
        return
    cut = isinstance(batch, Batch)
    whole = [(_cut(batch, accumulation), accumulation)] if cut else _keyed_stacks(batch)
    for stack, used in whole:
        for place in range(int(used)):
            yield jax.tree.map(lambda array, place=place: array[place], stack)


def _wide(leaf: jax.Array) -> jnp.dtype:
    """The dtype that sums of a leaf's gradients are kept in."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _cut(batch: Batch, accumulation: int) -> Batch:
    """The window's rows as [accumulation, B, T], each micro-batch with a dropout key of its own."""
    rows = batch.input_ids.shape[0]
    if rows % accumulation:
        raise ValueError(
            f"a window's rows must divide into {accumulation} micro-batches; got {rows} rows. "
            "Fill the last one with rows whose labels are all -100."
        )

    def cut(name: str) -> Any:
        value = getattr(batch, name)
        if value is None:
            return None
        return jnp.asarray(value).reshape(accumulation, rows // accumulation, -1)

    key = batch.dropout_key
    return Batch(
        input_ids=cut("input_ids"),
        labels=cut("labels"),
        segment_ids=cut("segment_ids"),
        positions=cut("positions"),
        dropout_key=None if key is None else jax.random.split(key, accumulation),
        layout=batch.layout,
    )


def clip_by_global_norm(
    gradient: nnx.State, norm: Float[Array, ""], max_grad_norm: int | float
) -> nnx.State:
    """Scale by min(1, max / (norm + 1e-6)): torch's `clip_grad_norm_`; optax has no 1e-6."""
    scale = jnp.minimum(1.0, max_grad_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, gradient)


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    max_grad_norm: int | float | None = None,
    label_smoothing: float = 0.0,
    neftune_noise_alpha: int | float | None = None,
    deterministic: bool = False,
) -> Step:
    """Compile-once training step: micro-batches, clip and optimizer in one program.

    Args:
      graphdef: From `split`.
      tx: Any optax transformation; its schedule counts optimizer steps.
      accumulation: Micro-batches a step; the rows of a `Batch` are cut in order.
      max_grad_norm: Global norm to clip to; None or 0: no clipping.
      label_smoothing: As in `loss`.
      neftune_noise_alpha: As in `loss`.
      deterministic: Have XLA choose operations whose results do not depend on the order of its
        threads; slower on a GPU.

    Returns:
      `step(trainable, opt_state, frozen, batch, halted=None) -> (trainable, opt_state, metrics)`,
      which *consumes* its first two arguments (their memory is reused). metrics: `loss` (mean over
      the window's tokens), `grad_norm` (before clipping) and `tokens` (labels counted), on the
      device. An `opt_state` of `dynamic_loss_scale` scales the loss, and adds `loss_scale` and
      `skipped`, the number of steps left out so far. Given `halted`, False for the first step and
      that of the step before for each other one, `halted` comes too: True from the step on whose
      loss or gradient is not finite (scaled: whose scale fell below 1), and parameters no longer
      change.
    """

    def step(
        trainable: nnx.State,
        opt_state: optax.OptState,
        frozen: nnx.State,
        batch: Batch | MicroBatches,
        halted: jax.Array | None = None,
    ) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        draws = neftune_noise_alpha or merge(graphdef, trainable, frozen).has_dropout
        if batch.dropout_key is None and draws:
            raise ValueError(
                "lora_dropout > 0 and NEFTune's noise need `Batch.dropout_key` in a training "
                "step; got None. Pass a key of its own to each step: "
                "jax.random.fold_in(jax.random.key(seed), step)."
            )
        gradient, mean_loss, tokens = window_gradient(
            graphdef,
            trainable,
            frozen,
            batch,
            accumulation,
            label_smoothing=label_smoothing,
            neftune_noise_alpha=neftune_noise_alpha,
            loss_scale=opt_state.scale if isinstance(opt_state, LossScaleState) else None,
        )
        norm = optax.tree.norm(gradient)
        if max_grad_norm:
            gradient = clip_by_global_norm(gradient, norm, max_grad_norm)
        # An optimizer's state has its leaf's dtype, and keeps it if the gradient has it too.
        gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, trainable)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(gradient, opt_state, trainable)
        metrics = {"loss": mean_loss, "grad_norm": norm, "tokens": tokens}
        ends = ~(jnp.isfinite(mean_loss) & jnp.isfinite(norm))
        if isinstance(opt_state, LossScaleState):
            metrics |= {"loss_scale": opt_state.scale, "skipped": opt_state.skipped}
            ends = opt_state.scale < 1
        if halted is not None:
            metrics["halted"] = halted = halted | ends
            updates = jax.tree.map(lambda u: jnp.where(halted, jnp.zeros_like(u), u), updates)
        # optax's annotation forgets that the tree it returns is of the kind that it was given.
        updated: Any = optax.apply_updates(trainable, updates)
        spread = spread_of(graphdef, trainable, frozen)
        if spread is not None:  # the next step takes them as this one did
            updated = spread.placed(updated)
            opt_state = placed_state(opt_state, trainable, spread.mesh)
        return updated, opt_state, metrics

    options = DETERMINISTIC if deterministic else None
    return jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
