"""The embedding in host memory, where a plan wants it there."""

import jax

from jaxtune.layers.host_memory import DEVICE, HOST, in_host_memory
from jaxtune.layers.residuals import EMBEDDING_ON_HOST
from jaxtune.layers.variables import Frozen
from jaxtune.models.decoder import CausalLM


def embedding_moves(model: CausalLM) -> bool:
    """Whether a plan may keep the embedding in host memory.

    That is, the head is another matrix, nothing trains it, and one device has all rows of a step.
    """
    weight, mesh = model.model.embed_tokens.weight, model.carried.mesh
    return isinstance(weight, Frozen) and not model.config.tie_word_embeddings and mesh is None


def place_embedding(model: CausalLM) -> None:
    """Put the embedding where the model's plan wants it; its values stay.

    Args:
      model: Changed in place, if at all.
    """
    embedding = model.model.embed_tokens
    value = embedding.weight.get_value()
    wanted = embedding_moves(model) and model.model.remat in EMBEDDING_ON_HOST
    if in_host_memory(value) != wanted:
        moved = jax.device_put(value, HOST if wanted else DEVICE)
        embedding.weight = Frozen(moved)  # pyrefly: ignore[bad-assignment]
