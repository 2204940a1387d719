"""Our tree and Hugging Face's tensor names: the one place where the two meet.

Modules and parameters carry Hugging Face's attribute names, and weights its layout, so the
mapping only takes the layer index out of the name: `model.layers.{l}.mlp.up_proj.weight` is
index l of the leaf `model.layers.mlp.up_proj.weight`. A family whose decoder stands deeper in
transformers' module (a multimodal one) says where: `CausalLM.decoder_name`.
"""

from collections.abc import Iterator
from typing import Any

STACK = ("model", "layers")

# nnx calls a path's parts keys; here all of them are attribute names.
Path = tuple[Any, ...]


def name_pattern(path: Path, decoder_name: str) -> str:
    """A leaf's (or module's) name in transformers' module, with `{}` for the layer's index.

    Args:
      path: Attribute path, such as ("model", "layers", "mlp", "up_proj", "weight").
      decoder_name: Of the family.

    Returns:
      Such as "model.layers.{}.mlp.up_proj.weight"; without `{}` outside the stack.
    """
    parts = [str(part) for part in path]
    if is_stacked(path):
        parts.insert(len(STACK), "{}")
    if parts[0] == STACK[0]:
        parts[0] = decoder_name
    return ".".join(parts)


def tensor_names(
    path: Path, layers: int, decoder_name: str = STACK[0]
) -> Iterator[tuple[int | None, str]]:
    """The tensors of a leaf: (layer, name) for each layer of a stack, (None, name) otherwise.

    Args:
      path: Attribute path of the leaf.
      layers: L.
      decoder_name: Of the family.

    Yields:
      The layer index (None outside the stack) and Hugging Face's name.
    """
    return each_layer(name_pattern(path, decoder_name), layers)


def each_layer(pattern: str, layers: int) -> Iterator[tuple[int | None, str]]:
    """The names that a pattern of `name_pattern` stands for."""
    if "{}" not in pattern:
        yield None, pattern
        return
    for layer in range(layers):
        yield layer, pattern.format(layer)


def is_stacked(path: Path) -> bool:
    """Whether a leaf has the leading layer axis."""
    return path[: len(STACK)] == STACK
