"""Adapter stacks to PEFT's named tensors and files, and back."""

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from convert import Adapter, AdapterConfig, write_adapter
from jaxtune.adapters.inject import projections
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.layers.linear import Linear, LoraSpec
from jaxtune.models.build import freeze
from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import STACK, tensor_names

PREFIX = "base_model.model."


def peft_names(trainable: nnx.State) -> dict[str, Array]:
    """The trained leaves under PEFT's tensor names, a layer at a time, without padding rows.

    Args:
      trainable: From `split`, or gradients or optimizer moments of its structure.

    Returns:
      {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": [R, in], ...}.
    """
    named: dict[str, Array] = {}
    for path, leaf in nnx.to_flat_state(trainable):
        value = leaf.get_value()
        ranks = leaf.get_metadata().get("ranks")
        layers = len(ranks) if ranks is not None else value.shape[0]
        for layer, name in tensor_names(path, layers):
            tensor = value if layer is None else value[layer]
            if ranks is None:
                named[PREFIX + name] = tensor
            elif ranks[layer]:
                rank = ranks[layer]
                kept = tensor[:rank] if path[-1] == "lora_A" else tensor[:, :rank]
                named[f"{PREFIX}{name}.weight"] = kept
    return named


def lora_specs(adapter: AdapterConfig, paths: list[str], layers: int) -> dict[str, LoraSpec]:
    """The same rank and scale for every layer of the selected projections.

    s = alpha / r, or alpha / sqrt(r) with `use_rslora`.
    """
    specs = {}
    for path in paths:
        scale = _scale(adapter, f"model.layers.0.{path}", adapter.r)
        specs[path] = LoraSpec(
            ranks=(adapter.r,) * layers, scales=(scale,) * layers, dropout=adapter.lora_dropout
        )
    return specs


def attach_adapter(model: CausalLM, adapter: Adapter) -> None:
    """Attach an adapter read from PEFT's files, trainable.

    Each layer's rank is its tensor's own; layers without a tensor get rank 0.

    Args:
      model: The base, changed in place.
      adapter: From `convert.read_adapter`.

    Raises:
      IncompatibleCheckpointError: A tensor has no place in the model, or another shape.
    """
    left = dict(adapter.tensors)
    found = []
    for path, linear in projections(model).items():
        pairs = _take_pairs(left, path, model.config.num_hidden_layers)
        if any(pair is not None for pair in pairs):
            found.append((linear, *_stacks(adapter.config, path, linear, pairs)))
    if left:
        raise IncompatibleCheckpointError(
            "every tensor of an adapter must belong to a projection of the model; no place for "
            f"{sorted(left)[:3]}. Check that the adapter was made for this base model."
        )
    freeze(model)
    for linear, spec, a, b in found:
        linear.attach_lora(spec, jnp.asarray(a), jnp.asarray(b))


Pair = tuple[np.ndarray, np.ndarray]


def _take_pairs(tensors: dict[str, np.ndarray], path: str, layers: int) -> list[Pair | None]:
    """Remove one projection's A and B from the tensors, layer by layer; None where it has none."""
    pairs: list[Pair | None] = []
    for _, name in tensor_names((*STACK, *path.split(".")), layers):
        a, b = (f"{PREFIX}{name}.lora_{side}.weight" for side in "AB")
        held = a in tensors and b in tensors
        pairs.append((tensors.pop(a), tensors.pop(b)) if held else None)
    return pairs


def _stacks(
    config: AdapterConfig, path: str, linear: Linear, pairs: list[Pair | None]
) -> tuple[LoraSpec, np.ndarray, np.ndarray]:
    """One projection's ranks and scales, and its zero-padded A [L, R, in] and B [L, out, R]."""
    layers, out_features, in_features = linear.weight.get_value().shape
    ranks = tuple(0 if pair is None else pair[0].shape[0] for pair in pairs)
    a = np.zeros((layers, max(ranks), in_features), np.float32)
    b = np.zeros((layers, out_features, max(ranks)), np.float32)
    for layer, (pair, rank) in enumerate(zip(pairs, ranks, strict=True)):
        if pair is None:
            continue
        if pair[0].shape != (rank, in_features) or pair[1].shape != (out_features, rank):
            raise IncompatibleCheckpointError(
                f"the adapter of layer {layer} `{path}` must be A [r, {in_features}] and "
                f"B [{out_features}, r]; got {pair[0].shape} and {pair[1].shape}. "
                "Check that the adapter was made for this base model."
            )
        a[layer, :rank], b[layer, :, :rank] = pair
    modules = [".".join((*STACK, str(layer), path)) for layer in range(layers)]
    scales = tuple(map(functools.partial(_scale, config), modules, ranks))
    return LoraSpec(ranks=ranks, scales=scales, dropout=config.lora_dropout), a, b


def _scale(config: AdapterConfig, module: str, rank: int) -> float:
    """The scale s of one layer's projection; 0 where it has no adapter."""
    if rank == 0:
        return 0.0
    alpha = config.alpha_for(module)
    if alpha is None:
        raise IncompatibleCheckpointError(
            f"the alpha of every adapted module must be plain to read; that of `{module}` hangs on "
            f"a regular expression in alpha_pattern: {dict(config.alpha_pattern)}. "
            "Write the modules' names out in adapter_config.json."
        )
    return alpha / (rank**0.5 if config.use_rslora else rank)


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
    named = peft_names(nnx.state(model, nnx.Param))
    tensors = {name: np.asarray(tensor) for name, tensor in named.items()}
    write_adapter(Path(folder), tensors, model.carried.adapter)
