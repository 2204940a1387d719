"""Dense weights to bitsandbytes' nf4, in numpy: for those who have neither JAX nor a GPU."""

import numpy as np

from convert.errors import CheckpointError, broken, shown
from convert.quantized import QuantizedInfo, QuantizedTensor

_F32 = np.float32
# The values of `bitsandbytes.functional.get_4bit_type("nf4")`.
TABLE = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    _F32,
)
_ZERO = 7  # its code
_DECADES = 7
_SMALLEST = _F32(1e-38)  # in place of an absmax of 0, which has no reciprocal
# Elements at a time; a multiple of every block, and few enough for a processor's cache.
_SPAN = 2**16


def dynamic_table() -> np.ndarray:
    """Compute bitsandbytes' signed dynamic 8-bit type.

    For each decade 10^(i - 6), i = 0 .. 6: the middles of 2^i + 1 equally spaced points of
    [0.1, 1], and their negatives; and 0 and 1. Every step is rounded as torch rounds it.

    Returns:
      float32 [256], ascending.

    Source: https://arxiv.org/abs/2110.02861, section 2; bitsandbytes `create_dynamic_map`.
    """
    values = [np.array([0, 1], _F32)]
    for decade in range(_DECADES):
        count = 2**decade + 1
        step = (_F32(1) - _F32(0.1)) / _F32(count - 1)
        left = np.arange(count // 2)
        right = np.arange(count // 2, count)
        # float64 is exact here; torch.linspace goes from both ends, and rounds once.
        ends = [_F32(0.1) + np.float64(step) * left, 1 - np.float64(step) * (count - 1 - right)]
        points = np.concatenate(ends).astype(_F32)
        middles = _F32(10.0 ** (decade + 1 - _DECADES)) * _middles(points)
        values += [middles, -middles]
    return np.sort(np.concatenate(values))


def quantize_nf4(info: QuantizedInfo, weight: np.ndarray) -> QuantizedTensor:
    """Quantise one weight, as bitsandbytes' `quantize_4bit` does.

    absmax_b = max |w_i| of block b;  code_i = nearest value of `TABLE` to w_i (1 / absmax_b), a tie
    going to the lower one. Doubly quantised, absmax - mean(absmax) becomes codes of
    `dynamic_table`, nearest too, a tie going to the even one, as its CUDA kernel has it.

    Args:
      info: What the file will say: shape, block and nested block.
      weight: [out, in], of any float dtype.

    Returns:
      The parts. The mean is rounded once from float64; bitsandbytes' own differs by device.

    Raises:
      CheckpointError: NaN or infinity in the weight.
    """
    count, block = weight.size, info.block
    flat = weight.reshape(-1)
    codes = np.full(count + count % 2, _ZERO, np.uint8)
    absmax = np.empty(-(-count // block), _F32)
    for begin in range(0, count, _SPAN):
        part = flat[begin : begin + _SPAN].astype(_F32)
        blocks = np.pad(part, (0, -part.size % block)).reshape(-1, block)
        scales = np.abs(blocks).max(axis=1)
        if not np.isfinite(scales).all():
            raise _not_finite(info.name)
        absmax[begin // block : begin // block + scales.size] = scales
        scaled = blocks * (_F32(1) / np.maximum(scales, _SMALLEST))[:, None]
        codes[begin : begin + part.size] = _nearest_nf4(scaled.reshape(-1)[: part.size])
    nested = None, None, None
    if info.nested_block is not None:
        offset = _F32(absmax.mean(dtype=np.float64))
        absmax, scales = _quantize_absmax(absmax - offset, info.nested_block)
        nested = scales, dynamic_table(), offset
    return QuantizedTensor(
        info=info,
        codes=(codes[::2] << 4) | codes[1::2],
        absmax=absmax,
        table=TABLE,
        nested_absmax=nested[0],
        nested_table=nested[1],
        offset=nested[2],
    )


def _not_finite(name: str) -> CheckpointError:
    """Build the error for a weight that has no scale."""
    return broken(
        f"The weight {shown(name)} must be finite to be quantised",
        got="NaN or infinity",
        wanted="finite weights",
        cure="Merge to bfloat16 or float32 if float16 is too small for it; else the adapter or its "
        "base is damaged.",
    )


def _nearest_nf4(scaled: np.ndarray) -> np.ndarray:
    """Codes of values in [-1, 1]: how many middles lie below each."""
    codes = np.zeros(scaled.size, np.uint8)
    for middle in _middles(TABLE):
        codes += scaled > middle
    return codes


def _quantize_absmax(absmax: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of absmax around their mean."""
    blocks = np.pad(absmax, (0, -absmax.size % block)).reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)
    scaled = (blocks * (_F32(1) / np.maximum(scales, _SMALLEST))[:, None]).reshape(-1)
    middles = _middles(dynamic_table())
    codes = np.searchsorted(middles, scaled)  # a tie is at the lower one
    tied = middles[np.minimum(codes, middles.size - 1)] == scaled
    codes += tied & (codes % 2 == 1)
    return codes[: absmax.size].astype(np.uint8), scales


def _middles(values: np.ndarray) -> np.ndarray:
    """Middles of neighbours, each step in float32."""
    return (values[:-1] + values[1:]) * _F32(0.5)
