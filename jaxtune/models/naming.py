"""Our tree and Hugging Face's tensor names: the one place where the two meet.

Modules and parameters carry Hugging Face's attribute names, and weights its layout, so the
mapping only takes the layer index out of the name: `model.layers.{l}.mlp.up_proj.weight` is
index l of the leaf `model.layers.mlp.up_proj.weight`.
"""

from collections.abc import Iterator
from typing import Any

STACK = ("model", "layers")

# nnx calls a path's parts keys; here all of them are attribute names.
Path = tuple[Any, ...]


def tensor_names(path: Path, layers: int) -> Iterator[tuple[int | None, str]]:
    """The tensors of a leaf: (layer, name) for each layer of a stack, (None, name) otherwise.

    Args:
      path: Attribute path of the leaf, such as ("model", "layers", "mlp", "up_proj", "weight").
      layers: L.

    Yields:
      The layer index (None outside the stack) and Hugging Face's name.
    """
    if not is_stacked(path):
        yield None, ".".join(path)
        return
    for layer in range(layers):
        yield layer, ".".join((*STACK, str(layer), *path[len(STACK) :]))


def is_stacked(path: Path) -> bool:
    """Whether a leaf has the leading layer axis."""
    return path[: len(STACK)] == STACK
