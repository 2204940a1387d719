"""The tensors of a GGUF file: llama.cpp's names, order of rows and types, from Hugging Face's."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from convert.errors import broken, shown
from convert.gguf_model import Architecture, architecture_of, rope_factors, text_config, unserved
from convert.stream import LazyTensor

# Gives every tensor of a model in a dtype, rounded once, by Hugging Face's names.
Tensors = Callable[[np.dtype], Mapping[str, LazyTensor]]
F32, F16, BF16 = (np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
# Quantisation method -> the dtype of its weights; q8_0 is computed from float32.
METHODS: dict[str, np.dtype] = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": F32}
_TEXT = ("model.language_model.", "language_model.model.")
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")
_OTHER_PARTS = ("model.vision_tower.", "vision_tower.", "model.multi_modal_", "multi_modal_")
_ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor as it will stand in the file.

    Attributes:
      shape: Of its elements, Hugging Face's order; GGUF writes it backwards.
      type: Of its elements: one of `METHODS`, in capitals.
      nbytes: In the file.
      read: Gives what to write, of `nbytes` bytes.
    """

    shape: tuple[int, ...]
    type: str
    nbytes: int
    read: Callable[[], np.ndarray]


def gguf_tensors(
    config: Mapping[str, Any], tensors: Tensors, method: str, names: Callable[[str], str | None]
) -> dict[str, GgufTensor]:
    """List a model's tensors, not yet computed.

    Matrices have the method's type; norms, biases and RoPE's factors are float32, and a matrix
    whose rows are no multiple of q8_0's 32 is float16, as llama.cpp has them.

    Args:
      config: config.json, or its transformers form.
      tensors: The model's.
      method: One of `METHODS`.
      names: llama.cpp's name of a tensor; None where it knows none.

    Returns:
      {llama.cpp's name: tensor}.

    Raises:
      CheckpointError: a tensor that llama.cpp has no place for.
    """
    kind, text = architecture_of(config), text_config(config)
    wide, narrow = tensors(F32), tensors(METHODS[method])
    halves = tensors(F16) if method == "q8_0" else {}
    found: dict[str, GgufTensor] = {}
    for name, tensor in narrow.items():
        if name.startswith(_OTHER_PARTS):
            continue  # llama.cpp has the vision part in a file of its own
        plain = _plain_name(name)
        if plain == _HEADS[0] and not kind.own_head:
            raise unserved(kind, "a head apart from the embedding")
        place = names(plain)
        if place is None:
            raise broken(
                f"Each tensor must have a place in a GGUF file of {kind.name}",
                got=shown(name),
                wanted="the names of a model that transformers wrote",
                cure="Check that config.json belongs to these weights.",
            )
        order = functools.partial(_ordered, kind, text, plain)
        if len(tensor.shape) < 2:
            found[place] = _dense(wide[name], order)
        elif method != "q8_0":
            found[place] = _dense(tensor, order)
        elif tensor.shape[-1] % 32:
            found[place] = _dense(halves[name], order)
        else:
            found[place] = _quantized(tensor, order)
    factors = rope_factors(config)
    if factors is not None:
        whole = LazyTensor(shape=factors.shape, dtype=F32, read=lambda: factors)
        found = {_ROPE_FREQS: _dense(whole, lambda array: array), **found}
    return found


def _plain_name(name: str) -> str:
    """A tensor's name as a model of text alone has it."""
    if name in _HEADS:
        return _HEADS[0]
    for prefix in _TEXT:
        if name.startswith(prefix):
            return f"model.{name.removeprefix(prefix)}"
    return name


def _ordered(
    kind: Architecture, text: Mapping[str, Any], name: str, array: np.ndarray
) -> np.ndarray:
    """A tensor with llama.cpp's order of rows, and its norms' 1 + w."""
    if kind.norm_shift and name.endswith("norm.weight"):
        return array + array.dtype.type(kind.norm_shift)
    module = name.rsplit(".", 2)[-2]
    if not kind.permutes or module not in ("q_proj", "k_proj"):
        return array
    heads = text["num_attention_heads" if module == "q_proj" else "num_key_value_heads"]
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


_Order = Callable[[np.ndarray], np.ndarray]


def _dense(tensor: LazyTensor, order: _Order) -> GgufTensor:
    """A tensor of 16 or 32 bits."""

    def read() -> np.ndarray:
        array = np.ascontiguousarray(order(tensor.read()))
        if array.dtype == F16 and not np.isfinite(array).all():
            raise broken(
                "A weight of a GGUF file must fit the range of float16",
                got="a number beyond 65504, or one that is not finite",
                wanted="finite weights",
                cure="Choose the method bf16 or f32.",
            )
        return array.view(np.uint16) if array.dtype == BF16 else array

    name = {F32: "F32", F16: "F16", BF16: "BF16"}[tensor.dtype]
    return GgufTensor(shape=tensor.shape, type=name, nbytes=tensor.nbytes, read=read)


def _quantized(tensor: LazyTensor, order: _Order) -> GgufTensor:
    """A matrix in blocks of 32: a float16 scale and 32 integers of 8 bits."""

    def read() -> np.ndarray:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        array = np.ascontiguousarray(order(tensor.read()))
        return quantize(array, GGMLQuantizationType.Q8_0)

    blocks = tensor.nbytes // F32.itemsize // 32
    return GgufTensor(shape=tensor.shape, type="Q8_0", nbytes=blocks * 34, read=read)
