"""The JSON that bitsandbytes writes beside a 4-bit weight: written, and checked when it is read.

Source: https://github.com/bitsandbytes-foundation/bitsandbytes `functional.py` @ 0.50.2
(`QuantState.as_dict`, `QuantState.from_dict`, `dequantize_4bit`).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.errors import CheckpointError, broken, shown
from convert.json_object import parse_json_object
from convert.rounding import WEIGHT_DTYPES

QUANT_TYPES = ("nf4", "fp4")
_BLOCKS = tuple(2**power for power in range(5, 13))
_BLOCK_RULE = f"a power of two from {_BLOCKS[0]} to {_BLOCKS[-1]}"
_DTYPES = {str(dtype): dtype for dtype in WEIGHT_DTYPES}
_PLAIN_KEYS = ("quant_type", "blocksize", "dtype", "shape")
_NESTED_KEYS = ("nested_blocksize", "nested_dtype", "nested_offset")
_MAX_DIMENSIONS, _MAX_EXTENT = 32, 2**40
# Of a weight or of what goes into one; float32 ends at 3.4e38.
LARGEST = 3e38
CURE = "The file is damaged or not by bitsandbytes: download it, or quantise the model, again."


@dataclass(frozen=True, kw_only=True)
class QuantState:
    """What the JSON says of one weight.

    Attributes:
      shape: Of the weight, each extent > 0.
      dtype: The weight's before it was quantised.
      quant_type: "nf4" or "fp4".
      block: Weights for each absmax.
      nested_block: Absmax values for each nested absmax; None where absmax is float32 itself.
      offset: Added to each absmax that was quantised; None without `nested_block`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    quant_type: str
    block: int
    nested_block: int | None
    offset: np.float32 | None


def parse_quant_state(data: bytes, weight: str, quant_type: str) -> QuantState:
    """Parse the JSON of one weight.

    Args:
      data: The bytes of `<weight>.quant_state.bitsandbytes__<quant_type>`.
      weight: The weight's name, for errors.
      quant_type: What the tensor's name says.

    Returns:
      The state.

    Raises:
      CheckpointError: no JSON object, a key that is missing or unknown, a value that bitsandbytes
        does not write, or another quant_type than the name's.
    """
    values: dict[str, Any] = parse_json_object(data, f"The quant_state of {shown(weight)}")
    nested = any(key in values for key in _NESTED_KEYS)
    wanted = (*_PLAIN_KEYS, *_NESTED_KEYS) if nested else _PLAIN_KEYS
    if set(values) != set(wanted):
        raise _bad(weight, f"the keys {shown(sorted(values))}", ", ".join(wanted))
    for key in wanted:
        accepts, text = _RULES[key]
        if not accepts(values[key]):
            raise _bad(weight, f"`{key}` {shown(values[key])}", text)
    if values["quant_type"] != quant_type:
        got = f"`quant_type` {shown(values['quant_type'])} under the name of {quant_type}"
        raise _bad(weight, got, "the same in both")
    return QuantState(
        shape=tuple(values["shape"]),
        dtype=_DTYPES[values["dtype"]],
        quant_type=quant_type,
        block=values["blocksize"],
        nested_block=values["nested_blocksize"] if nested else None,
        offset=np.float32(values["nested_offset"]) if nested else None,
    )


def write_quant_state(state: QuantState) -> bytes:
    """Write the JSON of one weight: bitsandbytes' keys in its order, and its values.

    The offset has 17 digits and an exponent, always, which is exact for a float32: so the length is
    known before the weight is computed, and the header of a file can be written first.

    Args:
      state: Of the weight; the offset, a mean of magnitudes, is not negative.

    Returns:
      The bytes of `<weight>.quant_state.bitsandbytes__<quant_type>`.
    """
    values: dict[str, object] = {
        "quant_type": state.quant_type,
        "blocksize": state.block,
        "dtype": str(state.dtype),
        "shape": list(state.shape),
    }
    if state.nested_block is None or state.offset is None:
        return json.dumps(values).encode()
    values |= {"nested_blocksize": state.nested_block, "nested_dtype": "float32"}
    text = json.dumps(values).removesuffix("}")
    return f'{text}, "nested_offset": {float(state.offset):.16e}}}'.encode()


def _bad(weight: str, got: str, wanted: str) -> CheckpointError:
    """Build the error for a state that bitsandbytes would not have written."""
    rule = f"The quant_state of {shown(weight)} must be one that bitsandbytes writes"
    return broken(rule, got=got, wanted=wanted, cure=CURE)


def _is_shape(value: object) -> bool:
    """True for a list of extents > 0."""
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MAX_DIMENSIONS
        and all(type(item) is int and 0 < item <= _MAX_EXTENT for item in value)
    )


def _is_block(value: object) -> bool:
    """True for a number of elements that bitsandbytes can put into one block."""
    return type(value) is int and value in _BLOCKS


def _is_number(value: object) -> bool:
    """True for a finite number of float32's range; JSON's true is no number here."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= LARGEST


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "quant_type": (lambda value: value in QUANT_TYPES, " or ".join(QUANT_TYPES)),
    "blocksize": (_is_block, _BLOCK_RULE),
    "dtype": (lambda value: value in tuple(_DTYPES), ", ".join(_DTYPES)),
    "shape": (_is_shape, "a list of extents > 0"),
    "nested_blocksize": (_is_block, _BLOCK_RULE),
    "nested_dtype": (lambda value: value == "float32", "float32"),
    "nested_offset": (_is_number, "a finite number"),
}
