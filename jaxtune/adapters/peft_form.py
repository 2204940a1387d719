"""Adapter stacks to PEFT's named tensors and files."""

from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Array

from convert import write_adapter
from jaxtune.adapters.inject import PREFIX
from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import STACK, each_layer, name_pattern


def peft_names(trainable: nnx.State) -> dict[str, Array]:
    """The trained leaves under PEFT's tensor names, a layer at a time, without padding rows.

    Args:
      trainable: From `split`, or gradients or optimizer moments of its structure.

    Returns:
      {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": [R, in], ...}; a matrix
      that embedding and head share stands under both names.
    """
    named: dict[str, Array] = {}
    for path, leaf in nnx.to_flat_state(trainable):
        value, metadata = leaf.get_value(), leaf.get_metadata()
        ranks = metadata.get("ranks")
        for pattern in metadata.get("peft_names") or (PREFIX + name_pattern(path, STACK[0]),):
            for layer, name in each_layer(pattern, value.shape[0]):
                tensor = value if layer is None else value[layer]
                if ranks is None:
                    named[name] = tensor
                elif ranks[layer]:
                    rank = ranks[layer]
                    named[name] = tensor[:rank] if path[-1] == "lora_A" else tensor[:, :rank]
    return named


def adapter_tensors(model: CausalLM) -> dict[str, np.ndarray]:
    """The tensors of an adapter's file: LoRA in float32, whole weights in the base's dtype."""
    named = peft_names(nnx.state(model, nnx.Param))
    return {
        name: np.asarray(tensor if ".lora_" in name else tensor.astype(model.dtype))
        for name, tensor in named.items()
    }


def save_adapter(model: CausalLM, folder: str | Path) -> None:
    """Write the adapter as `adapter_model.safetensors` and `adapter_config.json` of PEFT.

    Args:
      model: With an adapter.
      folder: Created if need be; each file replaces an old one at once, or not at all.

    Raises:
      ValueError: The model has no adapter.
    """
    if model.carried.adapter is None:
        raise ValueError(
            "there must be an adapter to save; the model has none. "
            "Call FastLanguageModel.get_peft_model(model, r=16) first."
        )
    write_adapter(Path(folder), adapter_tensors(model), model.carried.adapter)
