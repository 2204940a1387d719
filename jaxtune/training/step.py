"""The training step: pure functions over the two trees of a model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtune.data.batch import IGNORE, Batch, MicroBatches, shift_labels
from jaxtune.models.decoder import CausalLM
from pallas_kernels import linear_cross_entropy

# Also makes cuDNN's attention choose a backward pass without atomic additions.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
# Of the micro-batches so far: gradient, loss, tokens counted.
_Sums = tuple[nnx.State, jax.Array, jax.Array]
Step = Callable[
    [nnx.State, optax.OptState, nnx.State, Batch | MicroBatches],
    tuple[nnx.State, optax.OptState, dict[str, jax.Array]],
]


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

    Returns:
      (loss_sum, token_count), float32 and int32.
    """
    batch.check()
    model = merge(graphdef, trainable, frozen)
    segment_ids = None if batch.segment_ids is None else jnp.asarray(batch.segment_ids)
    hidden, _ = model.model(
        jnp.asarray(batch.input_ids),
        segment_ids=segment_ids,
        positions=None if batch.positions is None else jnp.asarray(batch.positions),
        dropout_key=batch.dropout_key,
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
    loss_sum = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        model.head_weight().astype(hidden.dtype),
        labels.reshape(-1),
        softcap=model.config.final_logit_softcapping,
        label_smoothing=label_smoothing,
        backend=model.model.split_kernels,
    )
    return loss_sum, jnp.sum(labels != IGNORE)


def window_gradient(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    batch: Batch | MicroBatches,
    accumulation: int,
    *,
    label_smoothing: float = 0.0,
) -> tuple[nnx.State, Float[Array, ""], Int[Array, ""]]:
    """Gradient of the window's mean loss, that loss, and its token count.

    The gradients of the micro-batches' loss sums are added up, in float32 or wider, and divided
    once by the tokens of the whole window, so the result does not depend on how the window is cut.

    Args:
      graphdef: From `split`.
      trainable: From `split`.
      frozen: From `split`.
      batch: All rows of the window, [accumulation * B, T]; or its micro-batches.
      accumulation: Micro-batches to cut a `Batch` into, in order.
      label_smoothing: As in `loss`.

    Returns:
      (gradient, mean loss, token count); the gradient of a leaf is float32 at least.
    """
    smoothed = functools.partial(loss, label_smoothing=label_smoothing)
    value_and_grad = jax.value_and_grad(smoothed, argnums=1, has_aux=True)

    def add(total: _Sums, micro: Batch) -> _Sums:
        (loss_sum, count), gradient = value_and_grad(graphdef, trainable, frozen, micro)
        return jax.tree.map(jnp.add, total, (gradient, loss_sum, count))

    if isinstance(batch, Batch) and accumulation == 1:
        (loss_sum, count), gradient = value_and_grad(graphdef, trainable, frozen, batch)
        gradient = jax.tree.map(lambda g, p: g.astype(_wide(p)), gradient, trainable)
    else:
        total: _Sums = (
            jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), trainable),
            jnp.zeros((), jnp.float32),
            jnp.zeros((), jnp.int32),
        )
        if isinstance(batch, Batch):
            cut = _cut(batch, accumulation)
            total, _ = jax.lax.scan(lambda sums, micro: (add(sums, micro), None), total, cut)
        else:
            total = _add_micro_batches(add, total, batch)
        gradient, loss_sum, count = total
    tokens = jnp.maximum(count, 1)
    return jax.tree.map(lambda g: g / tokens, gradient), loss_sum / tokens, count


def _add_micro_batches(
    add: Callable[[_Sums, Batch], _Sums], total: _Sums, batch: MicroBatches
) -> _Sums:
    """Add those that are used: a loop of as many rounds a stack, so that no empty one is run."""
    for number, (stack, used) in enumerate(zip(batch.stacks, batch.used, strict=True)):
        if batch.dropout_key is not None:
            key = jax.random.fold_in(batch.dropout_key, number)
            keys = jax.random.split(key, stack.input_ids.shape[0])
            stack = dataclasses.replace(stack, dropout_key=keys)
        total = jax.lax.fori_loop(
            0,
            used,
            lambda i, sums, stack=stack: add(sums, jax.tree.map(lambda array: array[i], stack)),
            total,
        )
    return total


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
    deterministic: bool = False,
) -> Step:
    """Compile-once training step: micro-batches, clip and optimizer in one program.

    Args:
      graphdef: From `split`.
      tx: Any optax transformation; its schedule counts optimizer steps.
      accumulation: Micro-batches a step; the rows of a `Batch` are cut in order.
      max_grad_norm: Global norm to clip to; None or 0: no clipping.
      label_smoothing: As in `loss`.
      deterministic: Have XLA choose operations whose results do not depend on the order of its
        threads; slower on a GPU.

    Returns:
      `step(trainable, opt_state, frozen, batch) -> (trainable, opt_state, metrics)`, which
      *consumes* its first two arguments (their memory is reused). metrics: `loss` (mean over the
      window's tokens), `grad_norm` (before clipping) and `tokens` (labels counted), on the device.
    """

    def step(
        trainable: nnx.State,
        opt_state: optax.OptState,
        frozen: nnx.State,
        batch: Batch | MicroBatches,
    ) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        if batch.dropout_key is None and merge(graphdef, trainable, frozen).has_dropout:
            raise ValueError(
                "a model with lora_dropout > 0 needs `Batch.dropout_key` in a training step; got "
                "None. Pass a key of its own to each step: "
                "jax.random.fold_in(jax.random.key(seed), step)."
            )
        gradient, mean_loss, tokens = window_gradient(
            graphdef, trainable, frozen, batch, accumulation, label_smoothing=label_smoothing
        )
        norm = optax.tree.norm(gradient)
        if max_grad_norm:
            gradient = clip_by_global_norm(gradient, norm, max_grad_norm)
        # An optimizer's state has its leaf's dtype, and keeps it if the gradient has it too.
        gradient = jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, trainable)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(gradient, opt_state, trainable)
        metrics = {"loss": mean_loss, "grad_norm": norm, "tokens": tokens}
        # optax's annotation forgets that the tree it returns is of the kind that it was given.
        updated: Any = optax.apply_updates(trainable, updates)
        return updated, opt_state, metrics

    options = DETERMINISTIC if deterministic else None
    return jax.jit(step, donate_argnums=(0, 1), compiler_options=options)
