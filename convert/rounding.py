"""Cast weights and merge LoRA into them, rounded once.

numpy casts float64 to bfloat16 by way of float32, which rounds twice: a value just above the middle
of two bfloat16 numbers becomes the middle, and then the even one, which may be the lower.
"""

import ml_dtypes
import numpy as np

WEIGHT_DTYPES = tuple(np.dtype(kind) for kind in (ml_dtypes.bfloat16, np.float16, np.float32))
FLOAT_DTYPES = frozenset((*WEIGHT_DTYPES, np.dtype(np.float64)))
_BFLOAT16 = WEIGHT_DTYPES[0]
_TINY = np.finfo(np.float32).tiny  # a row of zeros has no direction, and stays
_BLOCK_BYTES = 16 * 2**20
# The sixteen bits of float32 that bfloat16 drops, in the middle of two of its numbers.
_MIDDLE = np.uint16(0x8000)


def merge_linear(
    weight: np.ndarray,
    lora_a: np.ndarray | None,
    lora_b: np.ndarray | None,
    scale: float,
    dtype: np.dtype,
    *,
    magnitude: np.ndarray | None = None,
) -> np.ndarray:
    """Merge one LoRA pair into its weight: W + s B A, in float64, rounded once to `dtype`.

    With DoRA, m (W + s B A) / |W + s B A|, row by row.

    Computed in blocks of rows: beside `weight`, A and the result, at most 64 MiB are in use.

    Args:
      weight: W [out, in] of any float dtype.
      lora_a: A [R, in]; None, like R = 0, is no adapter: W is cast.
      lora_b: B [out, R].
      scale: s, dimensionless.
      dtype: Of the result: bfloat16, float16 or float32.
      magnitude: m [out] of DoRA; None without.

    Returns:
      [out, in], each element the float64 sum rounded to nearest, ties to even; beyond the largest
      finite number it is infinite.
    """
    if lora_a is None or lora_b is None or lora_a.shape[0] == 0:
        return cast(weight, dtype)
    merged = np.empty(weight.shape, dtype)
    rows = max(1, _BLOCK_BYTES // (8 * max(1, weight.shape[1])))
    a = lora_a.astype(np.float64)
    for begin in range(0, weight.shape[0], rows):
        block = slice(begin, begin + rows)
        total = lora_b[block].astype(np.float64) @ a
        total *= scale
        total += weight[block].astype(np.float64)
        if magnitude is not None:
            norms = np.linalg.norm(total, axis=1, keepdims=True)
            total *= magnitude[block].astype(np.float64)[:, None] / np.maximum(norms, _TINY)
        merged[block] = cast(total, dtype)
    return merged


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to nearest, ties to even, once.

    Args:
      array: Of any float dtype.
      dtype: bfloat16, float16, float32 or float64.

    Returns:
      The array in `dtype`; itself where it already was. Beyond the largest finite number infinite.
    """
    with np.errstate(over="ignore"):
        if array.dtype == np.float64 and dtype == _BFLOAT16:
            return _between(array).astype(_BFLOAT16)
        return array.astype(dtype, copy=False)


def _between(array: np.ndarray) -> np.ndarray:
    """Float64 as the float32 that rounds to the same bfloat16.

    Only a float32 that lies in the middle of two bfloat16 has forgotten on which side its float64
    was; it takes one step to that side. Any other is on the right side already, since the middles
    are float32 numbers themselves and rounding does not cross them.
    """
    exact = array.reshape(-1)
    single = exact.astype(np.float32)
    bits = single.view(np.uint32)
    middles = np.flatnonzero(bits.astype(np.uint16) == _MIDDLE)
    wanted, got = np.abs(exact[middles]), np.abs(single[middles])
    bits[middles] += (wanted > got).astype(np.uint32)
    bits[middles] -= (wanted < got).astype(np.uint32)
    return single.reshape(array.shape)
