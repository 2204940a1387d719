"""The tensors beside a 4-bit weight: their names, the shapes they must have, and their values.

Source: https://github.com/bitsandbytes-foundation/bitsandbytes `functional.py` @ 0.50.2
(`QuantState.as_dict`, `quantize_4bit`).
"""

import math
from collections.abc import Mapping

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, broken, shown
from convert.quant_state import CURE, LARGEST, QUANT_TYPES, QuantState, parse_quant_state
from convert.rounding import FLOAT_DTYPES

SCALES, TABLE = "absmax", "quant_map"
NESTED_SCALES, NESTED_TABLE = "nested_absmax", "nested_quant_map"
_MARK, _KIND = ".quant_state.", "bitsandbytes__"
_MAX_STATE_BYTES = 2**16
_CODES, _NESTED_CODES = 16, 256
_U8, _F32 = np.dtype(np.uint8), np.dtype(np.float32)
# What `bnb_4bit_quant_storage` can be; FSDP wants the dtype of the dense weights.
_STORAGE = FLOAT_DTYPES | {_U8, np.dtype(np.int8)}


def names_of_parts(weight: str, quant_type: str, *, nested: bool) -> tuple[str, ...]:
    """List the tensors of the files that make up one weight.

    Args:
      weight: Its name.
      quant_type: "nf4" or "fp4".
      nested: It is doubly quantised.

    Returns:
      Their names, that of the weight itself first, that of its JSON last.
    """
    parts = (SCALES, TABLE, *((NESTED_SCALES, NESTED_TABLE) if nested else ()))
    return (weight, *(f"{weight}.{part}" for part in parts), _state_name(weight, quant_type))


def quant_types(checkpoint: Checkpoint) -> dict[str, str]:
    """Find every 4-bit weight by the name of its JSON.

    Args:
      checkpoint: The checkpoint.

    Returns:
      {the weight's name: "nf4" or "fp4"}.

    Raises:
      CheckpointError: another kind of quantisation, or two for one weight.
    """
    kinds: dict[str, str] = {}
    for name in checkpoint.names:
        weight, found, kind = name.rpartition(_MARK)
        if not found:
            continue
        quant_type = kind.removeprefix(_KIND)
        if quant_type not in QUANT_TYPES or not kind.startswith(_KIND) or weight in kinds:
            wanted = " or ".join(_KIND + quant_type for quant_type in QUANT_TYPES)
            raise misfit(weight, shown(name), f"{wanted}, one for each weight")
        kinds[weight] = quant_type
    return kinds


def read_state(checkpoint: Checkpoint, weight: str, quant_type: str) -> QuantState:
    """Read the JSON of one weight, and check that the headers of its parts agree with it.

    Args:
      checkpoint: Open.
      weight: Its name.
      quant_type: What the name of its JSON says.

    Returns:
      The state; the codes fit its shape, and each part that it needs is there.

    Raises:
      CheckpointError: as `quantized_infos`.
    """
    name = _state_name(weight, quant_type)
    held = checkpoint.info(name)
    if held.dtype != _U8 or len(held.shape) != 1 or held.shape[0] > _MAX_STATE_BYTES:
        wanted = f"JSON as uint8 [bytes], at most {_MAX_STATE_BYTES}"
        raise misfit(weight, f"{shown(name)} of {held.dtype} {held.shape}", wanted)
    state = parse_quant_state(checkpoint.read(name).tobytes(), weight, quant_type)
    _check_codes(checkpoint, weight, state)
    for part, (dtype, length) in layout(state).items():
        name = f"{weight}.{part}"
        if name not in checkpoint:
            raise misfit(weight, f"no {shown(name)}", "all the parts that its quant_state needs")
        held = checkpoint.info(name)
        if held.dtype != dtype or held.shape != (length,):
            got = f"{shown(name)} of {held.dtype} {held.shape}"
            raise misfit(weight, got, f"{dtype} ({length},), as its quant_state says")
    return state


def layout(state: QuantState) -> dict[str, tuple[np.dtype, int]]:
    """Say what stands beside a 4-bit weight's codes and its JSON.

    Args:
      state: Of the weight.

    Returns:
      {part: its dtype and length}.
    """
    blocks = -(-math.prod(state.shape) // state.block)
    if state.nested_block is None:
        return {SCALES: (_F32, blocks), TABLE: (_F32, _CODES)}
    return {
        SCALES: (_U8, blocks),
        TABLE: (_F32, _CODES),
        NESTED_SCALES: (_F32, -(-blocks // state.nested_block)),
        NESTED_TABLE: (_F32, _NESTED_CODES),
    }


def check_leftovers(checkpoint: Checkpoint, used: frozenset[str]) -> None:
    """Check that no part stands there without a state that needs it.

    Args:
      checkpoint: The checkpoint.
      used: The names of every 4-bit weight's parts.

    Raises:
      CheckpointError: one does; its weight would be taken for a tensor of whole numbers.
    """
    for name in checkpoint.names:
        weight, _, part = name.rpartition(".")
        if part in (SCALES, TABLE, NESTED_SCALES, NESTED_TABLE) and name not in used:
            raise misfit(weight, shown(name), "no part without a quant_state that needs it")


def check_values(weight: str, parts: Mapping[str, np.ndarray], state: QuantState) -> None:
    """Check that every element of a weight will be a finite float32.

    Args:
      weight: Its name.
      parts: Those that were read, without the codes.
      state: Its JSON.

    Raises:
      CheckpointError: a scale or a table's value that is not finite, a negative nested scale, or
        scales so large that an element could pass float32's range.
    """
    floats = {part: array for part, array in parts.items() if array.dtype == _F32}
    for part, array in floats.items():
        if not np.isfinite(array).all():
            got = f"a number that is not finite in {shown(f'{weight}.{part}')}"
            raise misfit(weight, got, "finite numbers")
    most = {part: float(np.abs(array).max()) for part, array in floats.items()}
    scale = most.get(SCALES, 0.0)
    if state.offset is not None:
        scale = most[NESTED_SCALES] * most[NESTED_TABLE] + abs(float(state.offset))
    if max(scale, scale * most[TABLE]) > LARGEST:
        raise misfit(weight, f"scales up to {scale:.1e}", f"elements below {LARGEST}")
    # A largest magnitude; jaxtune's kernels rely on its sign.
    if NESTED_SCALES in floats and (floats[NESTED_SCALES] < 0).any():
        raise misfit(weight, f"a negative number in {NESTED_SCALES}", "largest magnitudes")


def misfit(weight: str, got: str, wanted: str) -> CheckpointError:
    """Build the error for parts that do not make up a 4-bit weight.

    Args:
      weight: Its name.
      got: What was found instead.
      wanted: What would have been accepted.

    Returns:
      The exception, not yet raised.
    """
    rule = f"The 4-bit weight {shown(weight)} must be as bitsandbytes saves it"
    return broken(rule, got=got, wanted=wanted, cure=CURE)


def _state_name(weight: str, quant_type: str) -> str:
    """The name of a weight's JSON."""
    return f"{weight}{_MARK}{_KIND}{quant_type}"


def _check_codes(checkpoint: Checkpoint, weight: str, state: QuantState) -> None:
    """Check that the codes are there, two in a byte, as many as the shape says."""
    if weight not in checkpoint:
        raise misfit(weight, "its quant_state alone", "its codes under that name")
    held = checkpoint.info(weight)
    bytes_wanted = -(-math.prod(state.shape) // 2)
    column = len(held.shape) == 1 or (len(held.shape) == 2 and held.shape[1] == 1)
    fits = math.prod(held.shape) * held.dtype.itemsize == bytes_wanted
    if held.dtype not in _STORAGE or not column or not fits:
        raise misfit(
            weight,
            f"codes of {held.dtype} {held.shape} for the shape {shown(state.shape)}",
            f"one column of {bytes_wanted} bytes, two codes in each",
        )
