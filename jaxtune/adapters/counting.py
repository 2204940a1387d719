"""Parameter counts, as PEFT prints them."""

import math

from flax import nnx

from jaxtune.models.decoder import CausalLM


def count_parameters(model: CausalLM) -> tuple[int, int]:
    """Trainable and all parameters; zero rows that only pad a stack are not counted.

    Args:
      model: With or without adapters; abstract leaves will do.

    Returns:
      (trainable, all).
    """
    trainable = total = 0
    for _, leaf in nnx.to_flat_state(nnx.state(model)):
        shape = leaf.get_value().shape
        size = math.prod(shape)
        if isinstance(leaf, nnx.LoRAParam):
            rank = max(leaf.get_metadata()["ranks"])
            layers = shape[0]
            size = size // (layers * rank) * sum(leaf.get_metadata()["ranks"])
        total += size
        if isinstance(leaf, nnx.Param):
            trainable += size
    return trainable, total


def trainable_line(model: CausalLM) -> str:
    """PEFT's line: "trainable params: 1,024 || all params: 2,048 || trainable%: 50.0000"."""
    trainable, total = count_parameters(model)
    share = 100 * trainable / total
    return f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}"
