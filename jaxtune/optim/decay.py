"""Which parameters weight decay pulls at."""

import re
from typing import Any

import jax

# Biases and norm weights are left alone; LoRA's A and B decay.
# Source: transformers `Trainer.get_decay_parameter_names`.
_SPARED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decay_mask(parameters: Any) -> Any:
    """Transformers' two groups: a leaf decays unless its name is that of a bias or a norm.

    Args:
      parameters: A pytree whose paths are Hugging Face's names without the layer number.

    Returns:
      The same tree, True where the leaf decays.
    """

    def decays(path: jax.tree_util.KeyPath, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return _SPARED.search(name.lower()) is None

    return jax.tree_util.tree_map_with_path(decays, parameters)
