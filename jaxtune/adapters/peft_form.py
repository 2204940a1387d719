"""Adapter stacks to PEFT's named tensors and files."""

from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array

from convert import write_adapter
from jaxtune.adapters.inject import PREFIX
from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import STACK, Path, each_layer, name_pattern


def peft_names(trainable: nnx.State) -> dict[str, Array | np.ndarray]:
    """The trained leaves under PEFT's tensor names, a layer at a time, without padding rows.

    Args:
      trainable: From `split`, or gradients or optimizer moments of its structure; on the host too.

    Returns:
      {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": [R, in], ...}; a matrix
      that embedding and head share stands under both names.
    """
    named: dict[str, Array | np.ndarray] = {}
    for path, leaf in nnx.to_flat_state(trainable):
        value = leaf.get_value()
        for name, part in _parts(path, leaf):
            named[name] = value[part] if part else value
    return named


def leaf_from_peft(path: Path, leaf: Any, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """A trained leaf's values from the tensors of an adapter's file; the inverse of `peft_names`.

    Args:
      path: Of the leaf, from `nnx.to_flat_state`.
      leaf: Its variable; its values do not count.
      tensors: By PEFT's names, in the leaf's shapes.

    Returns:
      The stack in float32, zero where ranks differ.
    """
    value = np.zeros(leaf.get_value().shape, np.float32)
    for name, part in _parts(path, leaf):
        value[part] = tensors[name]
    return value


def _parts(path: Path, leaf: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The tensors of a leaf: PEFT's name of each, and where it stands in the leaf."""
    metadata = leaf.get_metadata()
    ranks = metadata.get("ranks")
    for pattern in metadata.get("peft_names") or (PREFIX + name_pattern(path, STACK[0]),):
        for layer, name in each_layer(pattern, leaf.get_value().shape[0]):
            if layer is None:
                yield name, ()
            elif ranks is None:
                yield name, (layer,)
            elif ranks[layer]:
                held = slice(ranks[layer])
                yield name, (layer, slice(None), held) if path[-1] == "lora_B" else (layer, held)


def adapter_tensors(model: CausalLM) -> dict[str, np.ndarray]:
    """The tensors of an adapter's file: LoRA in float32, whole weights in the base's dtype."""
    named = peft_names(nnx.state(model, nnx.Param))
    return {
        name: np.asarray(tensor if ".lora_" in name else tensor.astype(model.dtype))
        for name, tensor in named.items()
    }


def save_adapter(model: CausalLM, folder: str | FilePath) -> None:
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
    write_adapter(FilePath(folder), adapter_tensors(model), model.carried.adapter)
