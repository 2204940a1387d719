"""Where a loss that is not finite comes from: the batch once more, layer by layer.

Compiled only for a run that has failed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtune.data.batch import Batch, MicroBatches
from jaxtune.language_model import LanguageModel
from jaxtune.models.decoder import CausalLM
from jaxtune.optim.loss_scale import all_finite
from jaxtune.training.named_leaves import named_leaves
from jaxtune.training.step import loss, merge, micro_batches_of, split, token_losses

PARTS = (
    "the embedding",
    "the output of layer {layer} (of 0 to {last})",
    "the final norm",
    "the output head",
)


def first_non_finite(
    model: LanguageModel,
    batch: Batch | MicroBatches,
    accumulation: int,
    neftune_noise_alpha: int | float | None,
) -> str:
    """The first part of the model that is not finite on a batch.

    Args:
      model: As it was before the step.
      batch: Of the step.
      accumulation: Micro-batches that a `Batch` is cut into.
      neftune_noise_alpha: As in the step.

    Returns:
      Words such as "the output of layer 3 (of 0 to 15)".
    """
    graphdef, trainable, frozen = split(model)
    broken = [name for name, leaf in named_leaves(trainable).items() if not all_finite(leaf)]
    if broken:
        return f"the parameter {broken[0]}"
    alpha = {"neftune_noise_alpha": neftune_noise_alpha}
    forward = jax.jit(functools.partial(_finite_parts, **alpha), static_argnums=0)
    backward = jax.jit(functools.partial(_finite_gradients, **alpha), static_argnums=0)
    micros = list(micro_batches_of(batch, accumulation))
    for check, name in ((forward, _first_part), (backward, last_gradient)):
        for micro in micros:
            found = name(check(graphdef, trainable, frozen, micro))
            if found is not None:
                return found
    return "the sum over the micro-batches, each of which is finite"


def _finite_parts(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    micro: Batch,
    *,
    neftune_noise_alpha: int | float | None,
) -> tuple[jax.Array, ...]:
    """Whether each part's output is finite, in the order of the forward pass and of `PARTS`."""
    model: CausalLM = merge(graphdef, trainable, frozen)
    hidden, parts = model.model.finite_parts(
        jnp.asarray(micro.input_ids),
        segment_ids=None if micro.segment_ids is None else jnp.asarray(micro.segment_ids),
        positions=None if micro.positions is None else jnp.asarray(micro.positions),
        dropout_key=micro.dropout_key,
        neftune_noise_alpha=neftune_noise_alpha,
    )
    losses, _ = token_losses(model, hidden, micro)
    return *parts, jnp.isfinite(losses)


def _finite_gradients(
    graphdef: nnx.GraphDef,
    trainable: nnx.State,
    frozen: nnx.State,
    micro: Batch,
    *,
    neftune_noise_alpha: int | float | None,
) -> dict[str, jax.Array]:
    """Whether each trained leaf's gradient is finite; of a stack, in each layer."""
    trained = functools.partial(loss, neftune_noise_alpha=neftune_noise_alpha)
    gradient, _ = jax.grad(trained, argnums=1, has_aux=True)(graphdef, trainable, frozen, micro)
    return {
        name: jnp.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1)
        for name, leaf in named_leaves(gradient).items()
    }


def _first_part(finite: tuple[jax.Array, ...]) -> str | None:
    for name, part in zip(PARTS, finite, strict=True):
        broken = np.flatnonzero(~np.asarray(part))
        if len(broken):
            return name.format(layer=broken[0], last=np.size(part) - 1)
    return None


def last_gradient(gradients: dict[str, jax.Array]) -> str | None:
    """Where the backward pass, which begins at the last layer, first is not finite.

    Args:
      gradients: By the name of the leaf, whether each row of its first axis is finite: of a stack
        of layers, each layer.

    Returns:
      Words for a message; None: all are finite.
    """
    worst: tuple[int, str] | None = None
    for name, finite in gradients.items():
        layers = np.flatnonzero(~np.asarray(finite))
        if len(layers) and ".layers." in f".{name}":
            worst = max(worst or (-1, ""), (int(layers[-1]), name))
        elif len(layers):
            return f"the gradient of {name}"
    return None if worst is None else f"the gradient of {worst[1]} in layer {worst[0]}"
