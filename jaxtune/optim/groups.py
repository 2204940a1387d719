"""Which parameters are the embedding and the head, that may have a learning rate of their own."""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import optax

_MODULES = ("embed_tokens", "lm_head")


def embedding_labels(parameters: Any) -> Any:
    """The labels that `by_rate` groups by.

    Trained copies of an adapter (`modules_to_save`) and the weights of full fine-tuning alike.

    Args:
      parameters: A pytree whose paths are Hugging Face's names without the layer number.

    Returns:
      The same tree, "embedding" where the leaf is the embedding or the head, else "other".
    """

    def label(path: jax.tree_util.KeyPath, _: Any) -> str:
        return "other" if _module(path) is None else "embedding"

    return jax.tree_util.tree_map_with_path(label, parameters)


def embedding_modules(parameters: Any) -> list[str]:
    """The modules that `embedding_labels` picks, embedding first: one for each matrix.

    Args:
      parameters: As for `embedding_labels`.

    Returns:
      Of "embed_tokens" and "lm_head" those that the tree has; a tied model has no "lm_head".
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(parameters)
    found = {_module(path) for path, _ in leaves}
    return [module for module in _MODULES if module in found]


def _module(path: jax.tree_util.KeyPath) -> str | None:
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    return next((part for part in parts if part in _MODULES), None)


def by_rate(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    learning_rate: optax.Schedule,
    embedding_learning_rate: optax.Schedule,
) -> optax.GradientTransformation:
    """One optimizer, at one rate for the embedding and the head and another for all else.

    Args:
      make: From a schedule to the optimizer.
      learning_rate: Of all else, 1/step.
      embedding_learning_rate: Of the embedding and the head, 1/step.

    Returns:
      An optax transformation.

    Source: https://github.com/unslothai/unsloth `trainer.py` `_create_unsloth_optimizer`, which
      sets the weight decay to 0; here each group keeps that of `make`.
    """
    groups: dict[Hashable, optax.GradientTransformation] = {
        "other": make(learning_rate),
        "embedding": make(embedding_learning_rate),
    }
    return optax.partition(groups, embedding_labels)
