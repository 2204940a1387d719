"""The modules of a model under the names that transformers and PEFT give them."""

import dataclasses
from typing import Any

from flax import nnx

from jaxtune.layers.linear import Linear
from jaxtune.models.decoder import CausalLM
from jaxtune.models.naming import STACK, each_layer, name_pattern


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A module with a weight: one, or a stack of one for each layer.

    Attributes:
      path: Attribute path, such as ("model", "layers", "self_attn", "q_proj").
      pattern: Its name in transformers' module, with `{}` for the layer's index in a stack.
      names: The names that the pattern stands for: one, or one for each layer.
      module: Itself: an embedding, a norm or a projection.
    """

    path: tuple[str, ...]
    pattern: str
    names: tuple[str, ...]
    module: Any

    @property
    def stacked(self) -> bool:
        """Whether it is a stack over the layers."""
        return "{}" in self.pattern

    @property
    def in_layer(self) -> str:
        """Its path inside a layer, such as "self_attn.q_proj"; "" outside the stack."""
        return ".".join(self.path[len(STACK) :]) if self.stacked else ""


def places(model: CausalLM) -> list[Place]:
    """Every module of a model that has a weight, in the model's order."""
    found = []
    for path, module in nnx.iter_modules(model):
        if hasattr(module, "weight"):
            pattern = name_pattern(path, model.decoder_name)
            names = tuple(name for _, name in each_layer(pattern, model.config.num_hidden_layers))
            parts = tuple(str(part) for part in path)
            found.append(Place(path=parts, pattern=pattern, names=names, module=module))
    return found


def linear_places(model: CausalLM) -> list[Place]:
    """The stacked projections, which LoRA can adapt."""
    return [p for p in places(model) if p.stacked and isinstance(p.module, Linear)]


def projections(model: CausalLM) -> dict[str, Linear]:
    """The stacked projections by their path inside a layer, such as "self_attn.q_proj"."""
    found = {place.in_layer: place.module for place in linear_places(model)}
    return {path: module for path, module in found.items() if isinstance(module, Linear)}
