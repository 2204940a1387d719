"""What becomes of a tied base's head when an adapter brings a head or an embedding of its own."""

from collections.abc import Callable, Mapping

import numpy as np

from convert.adapter_config import AdapterConfig
from convert.dequantized import DequantizedCheckpoint
from convert.edits import HEAD, Edit
from convert.errors import broken
from convert.names import added_name, file_name
from convert.stream import LazyTensor

_EMBEDDINGS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")


def settle_head(
    tensors: dict[str, LazyTensor],
    edits: Mapping[str, Edit],
    lazy: Callable[[str, Edit | None], LazyTensor],
    config: AdapterConfig,
) -> bool:
    """Keep a tied base tied where the new head and embedding are equal, else part them.

    PEFT applies each by itself: an embedding that was trained without the head leaves the head what
    the base's embedding was, unless `ensure_weight_tying` says that they are one.

    Args:
      tensors: Those of the merged model; its head is added, or removed where it is not needed.
      edits: What the adapter does, by the base's names.
      lazy: Gives a tensor of the base after an edit.
      config: The adapter's configuration.

    Returns:
      Whether the merged model has a head of its own.

    Raises:
      CheckpointError: head and embedding differ in shape.
    """
    places = (file_name(name, tensors) for name in _EMBEDDINGS)
    embedding = next((name for name in places if name is not None), None)
    held = file_name(HEAD, tensors)
    brought = edits.get(held or HEAD)
    if embedding is None or (brought is None and embedding not in edits):
        return False
    head = lazy(held or (embedding if brought is None else HEAD), brought)
    if config.ensure_weight_tying and brought is None:
        head = tensors[embedding]
    elif config.ensure_weight_tying and embedding not in edits:
        tensors[embedding] = head
    if head.shape != tensors[embedding].shape:
        raise broken(
            "The head of a tied model must have its embedding's shape",
            got=f"{head.shape} in the adapter",
            wanted=str(tensors[embedding].shape),
            cure="Check that the adapter was trained on this base model.",
        )
    if _are_equal(head, tensors[embedding]):
        tensors.pop(held or HEAD, None)
        return False
    tensors[held or added_name(HEAD, tensors)] = head
    return True


def rows_of(tensors: Mapping[str, LazyTensor], base: DequantizedCheckpoint) -> int | None:
    """Count the rows of an embedding that has more of them than the base's.

    Args:
      tensors: Those of the merged model.
      base: The model's.

    Returns:
      Rows; None where no tokens were added.

    Raises:
      CheckpointError: The head has another number of them.
    """
    names = [name for name in (file_name(name, tensors) for name in (*_EMBEDDINGS, HEAD)) if name]
    rows = {name: tensors[name].shape[0] for name in names}
    if all(name not in base.names or base.info(name).shape[0] == rows[name] for name in names):
        return None
    if len(set(rows.values())) > 1:
        raise broken(
            "Embedding and head of a model must have a row for each token",
            got=str(rows),
            wanted="as many in both",
            cure="Tokens were added: train embed_tokens and lm_head (modules_to_save).",
        )
    return next(iter(rows.values()))


def _are_equal(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether two matrices of one shape and dtype will be written as the same bytes."""
    bits = np.dtype(f"u{first.dtype.itemsize}")
    return np.array_equal(first.read().view(bits), second.read().view(bits))
