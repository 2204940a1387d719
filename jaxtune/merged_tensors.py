"""The weights of a merged model: each computed when its turn to be written comes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import (
    FLOAT_DTYPES,
    Checkpoint,
    DequantizedCheckpoint,
    LazyTensor,
    added_name,
    cast,
    file_name,
    merge_linear,
    stored_parts,
)
from jaxtune.adapters.modules import Place, places
from jaxtune.layers.linear import Linear
from jaxtune.layers.variables import weight_of
from jaxtune.merged_4bit import FourBits
from jaxtune.models.decoder import CausalLM
from pallas_kernels.nf4 import is_stack, layer_matrix

Read = Callable[[], np.ndarray]


def written_name(held: frozenset[str], name: str) -> str:
    """Find a tensor's name in a merged checkpoint.

    Args:
      held: Names in the base's files.
      name: transformers'.

    Returns:
      The base's name for it, of those that it holds.
    """
    return file_name(name, held) or added_name(name, held)


def merged_tensors(
    model: CausalLM, dtype: np.dtype, base: Checkpoint | None, bits: FourBits | None = None
) -> dict[str, LazyTensor]:
    """List every tensor of a merged checkpoint, not yet computed.

    Args:
      model: With or without an adapter.
      dtype: Of every float tensor; with `bits`, of those that stay dense.
      base: The folder that the model came from, open while they are read; None without files.
      bits: Its 4-bit weights; None: all are dense.

    Returns:
      {name in the files: tensor}.
    """
    held = frozenset() if base is None else frozenset(base.names)
    tensors = {}
    for place in places(model):
        for layer, name in enumerate(place.names):
            index = layer if place.stacked else None
            original = _original(place, file_name(f"{name}.weight", held), base)
            for part, value in _parts(place, index, dtype, original):
                written = written_name(held, f"{name}.{part}")
                if bits is not None and part == "weight" and bits.holds(place, written):
                    merge = functools.partial(
                        _merged_weight, place.module, index, original=original
                    )
                    tensors |= bits.parts(place, layer, written, merge)
                else:
                    tensors[written] = value
    if base is not None:
        tensors |= _others(model, dtype, base, bits)
    return tensors


def base_tensors(
    model: CausalLM, dtype: np.dtype, base: Checkpoint | None
) -> dict[str, LazyTensor]:
    """List every tensor that a model computes with when its adapter is off.

    Of 4-bit weights these are the dequantised values, and not what they were made from.

    Args:
      model: With or without an adapter.
      dtype: Of every float tensor.
      base: As in `merged_tensors`.

    Returns:
      {name in the files: tensor}.
    """
    held = frozenset() if base is None else frozenset(base.names)
    tensors = {}
    for place in places(model):
        for layer, name in enumerate(place.names):
            index = layer if place.stacked else None
            stacks = {"weight": weight_of(place.module, False)}
            if getattr(place.module, "bias", None) is not None:
                stacks["bias"] = place.module.bias.get_value()
            for part, stack in stacks.items():
                shape = tuple(stack.shape if index is None else stack.shape[1:])
                read = functools.partial(_cast_dense, stack, index, dtype)
                written = written_name(held, f"{name}.{part}")
                tensors[written] = LazyTensor(shape=shape, dtype=dtype, read=read)
    if base is not None:
        tensors |= _others(model, dtype, base, None)
    return tensors


def _others(
    model: CausalLM, dtype: np.dtype, base: Checkpoint, bits: FourBits | None
) -> dict[str, LazyTensor]:
    """The base's tensors of parts that the model does not compute, such as vision."""
    dense = DequantizedCheckpoint(base)
    tensors = {}
    for name in dense.names:
        if not name.startswith(model.other_parts):
            continue
        if bits is not None and name in bits.infos:
            tensors |= stored_parts(base, bits.infos[name])
            continue
        info = dense.info(name)
        kept = dtype if info.dtype in FLOAT_DTYPES else info.dtype
        read = functools.partial(_read_other, dense, name, kept)
        tensors[name] = LazyTensor(shape=info.shape, dtype=kept, read=read)
    return tensors


def _original(place: Place, name: str | None, base: Checkpoint | None) -> Read | None:
    """How to read the dense weight that a 4-bit one was made from; None if the base has none."""
    stack = weight_of(place.module, True)
    if base is None or name is None or not is_stack(stack):
        return None
    return functools.partial(base.read, name) if base.info(name).shape == stack.shape[1:] else None


def _parts(
    place: Place, layer: int | None, dtype: np.dtype, original: Read | None
) -> Iterator[tuple[str, LazyTensor]]:
    """A module's weight and bias, of one layer of it."""
    module: Any = place.module
    shape = weight_of(module, True).shape
    shape = shape if layer is None else shape[1:]
    read = functools.partial(_merged_weight, module, layer, dtype, original)
    yield "weight", LazyTensor(shape=shape, dtype=dtype, read=read)
    if getattr(module, "bias", None) is not None:
        read = functools.partial(_slice, module.bias.get_value(), layer, dtype)
        yield "bias", LazyTensor(shape=shape[:1], dtype=dtype, read=read)


def _dense(stack: Any, layer: int | None) -> np.ndarray:
    """A weight, of one layer of a stack; of 4 bits, the values that training computes with."""
    if layer is None:
        return np.asarray(stack)
    if is_stack(stack):
        return np.asarray(layer_matrix(stack, layer, jnp.float32, "auto"))
    return np.asarray(stack[layer])


def _cast_dense(stack: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    return cast(_dense(stack, layer), dtype)


def _slice(stack: Any, layer: int | None, dtype: np.dtype) -> np.ndarray:
    return cast(np.asarray(stack if layer is None else stack[layer]), dtype)


def _merged_weight(
    module: nnx.Module, layer: int | None, dtype: np.dtype, original: Read | None
) -> np.ndarray:
    """One layer's merged weight, rounded once; of a 4-bit W the original's, where there is one."""
    weight = _dense(weight_of(module, True), layer) if original is None else original()
    if not isinstance(module, Linear) or module.lora is None or layer is None:
        return cast(weight, dtype)
    rank, scale = module.lora.ranks[layer], module.lora.scales[layer]
    if not rank:
        return cast(weight, dtype)
    a = np.asarray(module.lora_A[...][layer, :rank])
    b = np.asarray(module.lora_B[...][layer, :, :rank])
    magnitude = None
    if module.lora.use_dora:
        magnitude = np.asarray(module.lora_magnitude_vector[...][layer])
    return merge_linear(weight, a, b, scale, dtype, magnitude=magnitude)


def _read_other(base: DequantizedCheckpoint, name: str, dtype: np.dtype) -> np.ndarray:
    array = base.read(name)
    return array if array.dtype == dtype else cast(array, dtype)
