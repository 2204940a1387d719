"""A merged model in bitsandbytes' 4 bits: which tensors have them, and how each gets them."""

import functools
from collections.abc import Callable, Container, Iterable, Mapping

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import broken, shown
from convert.nf4 import quantize_nf4
from convert.quantization_config import Quantization, quantization_of
from convert.quantized import QuantizedInfo, QuantizedTensor
from convert.quantized_form import computed_parts, new_info, stored_parts
from convert.stream import LazyTensor

BLOCK, NESTED_BLOCK = 64, 256  # what bitsandbytes takes
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head"
_MODEL = "model."


def in_4bit(
    tensors: Mapping[str, LazyTensor],
    base: Checkpoint,
    held: Mapping[str, QuantizedInfo],
    changed: Container[str],
    dense: Callable[[QuantizedInfo], LazyTensor],
) -> dict[str, LazyTensor]:
    """Quantise the projections of a merged model, when their turn to be written comes.

    Of a base with 4-bit weights these are quantised again where the adapter changes them, from the
    sum in the dtype that they had before, and stay as they are stored elsewhere. Of another base it
    is every matrix of its layers, as in transformers: all linear layers but the head.

    Args:
      tensors: Of the merged model, dense.
      base: Open as long as they are read.
      held: Its 4-bit weights.
      changed: Names of the tensors that the adapter changes.
      dense: Gives one of `held`, merged, in the dtype that it had before it was quantised.

    Returns:
      {name: tensor}; a 4-bit weight is several.

    Raises:
      CheckpointError: An fp4 weight that the adapter changes, or layers that are not found.
    """
    root = "" if held else text_root(tensors)
    parts: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        known = held.get(name)
        if known is not None and name not in changed:
            parts |= stored_parts(base, known)
        elif known is not None:
            _check_nf4(known)
            describe = functools.partial(new_info, block=known.block)
            info = describe(name, known.shape, known.dtype, nested_block=known.nested_block)
            parts |= computed_parts(info, functools.partial(_quantize, info, dense(known)))
        elif not held and name.startswith(f"{root}layers.") and _is_matrix(name, tensor):
            info = new_info(
                name, tensor.shape, tensor.dtype, block=BLOCK, nested_block=NESTED_BLOCK
            )
            parts |= computed_parts(info, functools.partial(_quantize, info, tensor))
        else:
            parts[name] = tensor
    return parts


def quantization_for(config: Mapping[str, object], names: Iterable[str]) -> Quantization:
    """Say how the weights of a merged model are quantised, for its config.json.

    Args:
      config: The base's config.json.
      names: Of the merged model's tensors.

    Returns:
      The base's own values where it has 4 bits, else nf4 with double quantisation; the head, and
      what is not the text model, are among the modules to skip.
    """
    found = quantization_of(config)
    if found is not None:
        skipped = (*found.skip_modules, _HEAD)
        return Quantization(
            quant_type=found.quant_type,
            double_quant=found.double_quant,
            skip_modules=tuple(dict.fromkeys(skipped)),
        )
    names = list(names)
    root = text_root(names)
    others = sorted({_beside(name, root) for name in names if not name.startswith(root)})
    # By the files' names and by the modules': which one is asked for hangs on the version.
    bare = dict.fromkeys(name.removeprefix(_MODEL) for name in others if not name.endswith(_HEAD))
    skipped = (_HEAD, *(one for name in bare for one in (name, _MODEL + name)))
    return Quantization(quant_type="nf4", double_quant=True, skip_modules=skipped)


def text_root(names: Iterable[str]) -> str:
    """Find what the names of the text model's tensors begin with.

    Args:
      names: Of a model's tensors.

    Returns:
      Such as "model.".

    Raises:
      CheckpointError: There is no embedding, or there are several.
    """
    roots = [name.removesuffix(_EMBEDDING) for name in names if name.endswith(_EMBEDDING)]
    if len(roots) != 1:
        raise broken(
            "The layers of a model stand beside its one embed_tokens.weight",
            got=f"{len(roots)} of that name",
            wanted="one",
            cure="Write target merged, and quantise that in transformers.",
        )
    return roots[0]


def _beside(name: str, root: str) -> str:
    """The module at which a name leaves the path of the text model."""
    path, own = name.split("."), root.split(".")
    same = next(i for i, part in enumerate(path) if i >= len(own) or part != own[i])
    return ".".join(path[: same + 1])


def _is_matrix(name: str, tensor: LazyTensor) -> bool:
    return name.endswith(".weight") and len(tensor.shape) == 2


def _quantize(info: QuantizedInfo, tensor: LazyTensor) -> QuantizedTensor:
    return quantize_nf4(info, np.asarray(tensor.read()))


def _check_nf4(info: QuantizedInfo) -> None:
    if info.quant_type != "nf4":
        raise broken(
            "A merged weight is quantised to nf4, and the layers of one projection must be alike",
            got=f"{info.quant_type} of {shown(info.name)} in the base",
            wanted="nf4",
            cure="Write target merged, in 16 bits.",
        )
