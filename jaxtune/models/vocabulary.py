"""A vocabulary that grows: more rows of the embedding and of a head of its own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxtune.models.decoder import CausalLM

# From the old rows, float32 [V, D], to all rows that there will be.
Grow = Callable[[np.ndarray], np.ndarray]


def grow_vocabulary(model: CausalLM, size: int, grow: Grow | None = None) -> None:
    """Change the rows of the embedding, and of the head where it is another matrix.

    The model's configuration, and what will be written of it, say the new size.

    Args:
      model: Without an adapter; changed in place.
      size: Rows that there will be, at least the rows that there are.
      grow: Gives them; None: the new ones are the mean of the old.
    """
    matrices: list[Any] = [model.model.embed_tokens]
    if not model.config.tie_word_embeddings:
        matrices.append(model.lm_head)
    for module in matrices:
        old = module.weight.get_value()
        rows = np.asarray(old, np.float32)
        new = with_mean(rows, size) if grow is None else grow(rows)
        module.weight.set_value(jax.device_put(new.astype(old.dtype), old.sharding))
    carried = model.carried
    model.config = dataclasses.replace(model.config, vocab_size=size)
    model.model.config = model.config
    carried.hf_config = _with_size(carried.hf_config, size)
    if carried.config_json is not None:
        carried.config_json = _with_size(carried.config_json, size)
    carried.vocabulary = size


def with_mean(rows: np.ndarray, size: int, known: int | None = None) -> np.ndarray:
    """Append rows that are the mean of the old ones.

    Args:
      rows: [V, D].
      size: Rows of the result.
      known: Rows that the mean is taken over; None: all.

    Returns:
      [size, D] in the rows' dtype.
    """
    mean = rows[:known].mean(axis=0, dtype=np.float64).astype(rows.dtype)
    return np.concatenate([rows, np.tile(mean, (size - len(rows), 1))])


def _with_size(config: dict[str, Any], size: int) -> dict[str, Any]:
    """A copy of a configuration, or of its text part, with another vocab_size."""
    text = config.get("text_config")
    if isinstance(text, dict):
        return {**config, "text_config": {**text, "vocab_size": size}}
    return {**config, "vocab_size": size}
