"""The 4-bit weights of a bitsandbytes checkpoint: which there are, and their parts as stored.

A weight W of n elements is `W` (two codes in a byte), `W.absmax` (one scale for each block),
`W.quant_map` (the 16 values that codes mean) and `W.quant_state.bitsandbytes__nf4` (JSON); with
double quantisation `W.absmax` holds codes too, of `W.nested_absmax` and `W.nested_quant_map`.
Source: https://github.com/bitsandbytes-foundation/bitsandbytes `functional.py` @ 0.50.2
(`QuantState.as_dict`).
"""

import math
from dataclasses import dataclass

import numpy as np

from convert.checkpoint import Checkpoint
from convert.quant_state import QuantState
from convert.quantized_parts import (
    NESTED_SCALES,
    NESTED_TABLE,
    SCALES,
    TABLE,
    check_leftovers,
    check_values,
    misfit,
    names_of_parts,
    quant_types,
    read_state,
)


@dataclass(frozen=True, kw_only=True)
class QuantizedInfo:
    """What the headers and the small JSON say of one weight; none of its data is read.

    Attributes:
      name: The weight's, `model.layers.0.mlp.up_proj.weight`.
      shape: Of the weight, [out, in].
      dtype: The weight's before it was quantised: bfloat16, float16 or float32.
      quant_type: "nf4" or "fp4".
      block: Weights for each absmax.
      nested_block: Absmax values for each nested absmax; None where absmax is float32 itself.
      nbytes: Of all its tensors in the files, in bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    quant_type: str
    block: int
    nested_block: int | None
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor:
    """One weight of n elements as it is stored; `dequantize` gives its values.

    Attributes:
      info: What was known before it was read.
      codes: uint8 [ceil(n/2)]; byte k holds the codes of elements 2k (high four bits) and 2k+1
        (low) of the weight in row-major order.
      absmax: [ceil(n/block)], uint8 with double quantisation, else float32.
      table: float32 [16], the value of each code at absmax 1.
      nested_absmax: float32 [ceil(blocks/nested_block)]; None, like the two that follow, without
        double quantisation.
      nested_table: float32 [256], the value of each code in `absmax` at nested absmax 1.
      offset: Added to each absmax.
    """

    info: QuantizedInfo
    codes: np.ndarray
    absmax: np.ndarray
    table: np.ndarray
    nested_absmax: np.ndarray | None
    nested_table: np.ndarray | None
    offset: np.float32 | None


def quantized_infos(checkpoint: Checkpoint) -> dict[str, QuantizedInfo]:
    """Find every 4-bit weight, and check by the headers that its parts are there and fit.

    Args:
      checkpoint: Open; of the files' data only the JSON of each weight is read.

    Returns:
      {the weight's name: what is known of it}; empty for a checkpoint without any.

    Raises:
      CheckpointError: a state that bitsandbytes does not write, a part that is missing, left over,
        or of another shape or dtype than the state says.
    """
    infos = {
        weight: _info(checkpoint, weight, read_state(checkpoint, weight, quant_type))
        for weight, quant_type in quant_types(checkpoint).items()
    }
    used = frozenset(part for info in infos.values() for part in part_names(info))
    check_leftovers(checkpoint, used)
    return infos


def part_names(info: QuantizedInfo) -> tuple[str, ...]:
    """List the tensors of the files that make up one weight.

    Args:
      info: The weight.

    Returns:
      Their names, that of the weight itself first.
    """
    return names_of_parts(info.name, info.quant_type, nested=info.nested_block is not None)


def read_quantized(checkpoint: Checkpoint, info: QuantizedInfo) -> QuantizedTensor:
    """Read one 4-bit weight's parts, and check that every element will be a finite float32.

    Args:
      checkpoint: Open.
      info: One of its `quantized_infos`.

    Returns:
      The parts.

    Raises:
      CheckpointError: `info` is of another checkpoint, what `quantized_infos` refuses, or a scale
        or a table's value that is not finite or too large.
    """
    state = read_state(checkpoint, info.name, info.quant_type)
    known = _info(checkpoint, info.name, state)
    if known != info:
        raise misfit(info.name, f"{known} in the files", f"{info}, as it was when it was opened")
    names = (SCALES, TABLE, *(() if state.nested_block is None else (NESTED_SCALES, NESTED_TABLE)))
    parts = {name: checkpoint.read(f"{info.name}.{name}") for name in names}
    check_values(info.name, parts, state)
    return QuantizedTensor(
        info=info,
        codes=checkpoint.read(info.name).reshape(-1).view(np.uint8),
        absmax=parts[SCALES],
        table=parts[TABLE],
        nested_absmax=parts.get(NESTED_SCALES),
        nested_table=parts.get(NESTED_TABLE),
        offset=state.offset,
    )


def _info(checkpoint: Checkpoint, weight: str, state: QuantState) -> QuantizedInfo:
    """What a checked state says of its weight."""
    nested = state.nested_block is not None
    held = map(checkpoint.info, names_of_parts(weight, state.quant_type, nested=nested))
    return QuantizedInfo(
        name=weight,
        shape=state.shape,
        dtype=state.dtype,
        quant_type=state.quant_type,
        block=state.block,
        nested_block=state.nested_block,
        nbytes=sum(math.prod(info.shape) * info.dtype.itemsize for info in held),
    )
