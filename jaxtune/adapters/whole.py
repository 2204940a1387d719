"""Parts that an adapter trains whole: `modules_to_save`, biases, and a head that leaves its tie."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from jaxtune.adapters.inject import PREFIX
from jaxtune.adapters.modules import Place, places
from jaxtune.errors import NotBuiltYetError
from jaxtune.layers.linear import Linear, LoraSpec
from jaxtune.layers.variables import Frozen, TrainedCopy
from jaxtune.models.build import master
from jaxtune.models.decoder import CausalLM
from pallas_kernels.nf4 import is_stack

HEAD = f"{PREFIX}lm_head.weight"


def check_whole(selected: Sequence[Place]) -> None:
    """Refuse modules that cannot be trained whole, before anything is changed.

    Args:
      selected: From `select_whole`.

    Raises:
      NotBuiltYetError: A projection with a bias.
      ValueError: A weight of 4 bits.
    """
    for place in selected:
        module = place.module
        if getattr(module, "bias", None) is not None:
            raise NotBuiltYetError(
                f"`modules_to_save` of a projection with a bias is not built yet; got "
                f"`{place.pattern}`. Adapt it by LoRA with bias='lora_only' instead."
            )
        if is_stack(module.weight.get_value()):
            raise ValueError(
                "`modules_to_save` trains a dense weight; got "
                f"`{place.pattern}`, which has 4 bits. Load with load_in_4bit=False, or adapt it "
                "by LoRA."
            )


def train_copies(model: CausalLM, selected: Sequence[Place]) -> None:
    """Give modules a trained float32 copy of their weight, equal to it at first.

    The base's weight stays beside it, for the logits without adapters. The embedding of a tied
    model and its head stay one matrix: PEFT's `ensure_weight_tying=True`.

    Args:
      model: Changed in place.
      selected: From `select_whole`; they passed `check_whole`.
    """
    for place in selected:
        names = [f"{PREFIX}{place.pattern}.weight"]
        if place.path[-1] == "embed_tokens" and model.config.tie_word_embeddings:
            names.append(HEAD)
        copy = TrainedCopy(master(place.module.weight.get_value()), peft_names=tuple(names))
        place.module.trained_weight = copy


def check_biases(model: CausalLM, bias: str, specs: Mapping[str, LoraSpec]) -> None:
    """Refuse biases that cannot be trained, before anything is changed.

    Args:
      model: Without the adapter.
      bias: "none", "all" or "lora_only".
      specs: Of the projections that will be adapted, by their path inside a layer.

    Raises:
      NotBuiltYetError: Biases of a projection that is adapted in some of its layers.
    """
    for place in places(model):
        spec = specs.get(place.in_layer)
        held = isinstance(place.module, Linear) and place.module.bias is not None
        if bias != "none" and held and spec is not None and 0 in spec.ranks:
            raise NotBuiltYetError(
                f"bias={bias!r} beside layers that are not adapted is not built yet; got "
                f"`{place.pattern}` adapted in some layers. Adapt every layer, or pass bias='none'."
            )


def train_biases(model: CausalLM, bias: str) -> int:
    """Train biases in place, as PEFT does: "all", or those of adapted projections ("lora_only").

    Args:
      model: With its LoRA branches, which passed `check_biases`; changed in place.
      bias: "none", "all" or "lora_only".

    Returns:
      Stacks of biases that are trained now.
    """
    if bias == "none":
        return 0
    trained = 0
    for place in places(model):
        linear = place.module
        if not isinstance(linear, Linear) or linear.bias is None:
            continue
        if bias == "lora_only" and linear.lora is None:
            continue
        suffix = ".bias" if linear.lora is None else ".base_layer.bias"
        names = (f"{PREFIX}{place.pattern}{suffix}",)
        linear.bias = nnx.Param(master(linear.bias.get_value()), peft_names=names)
        trained += 1
    return trained


def untie_head(model: CausalLM) -> None:
    """Give a tied model a head of its own that begins as the embedding; no array is copied."""
    config = model.config

    def make() -> Linear:
        return Linear(
            config.hidden_size,
            config.vocab_size,
            layers=None,
            bias=False,
            std=0.0,
            dtype=model.dtype,
            rngs=nnx.Rngs(0),
        )

    head: Any = nnx.eval_shape(make)
    head.weight = Frozen(model.model.embed_tokens.weight.get_value())
    model.lm_head = head
    model.config = dataclasses.replace(config, tie_word_embeddings=False)
