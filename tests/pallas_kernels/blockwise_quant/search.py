"""The search of bitsandbytes' CUDA kernels, transcribed."""

import numpy as np

HALF = np.float32(0.5)


def searched(x, table):
    """Code of a float32: `dQuantize` of bitsandbytes 0.50's csrc/kernels.cu, not stochastic.

    `quantize_2D` of its optimizers ends at the same code: it begins with 0 or -1 as the lower
    value, which is only looked at by an x below the lowest of the table.
    """
    pivot, upper_pivot, lower_pivot = 127, 255, 0
    lower, upper, value = np.float32(-1), np.float32(1), table[127]
    for step in (64, 32, 16, 8, 4, 2, 1):
        if x > value:
            lower_pivot, lower = pivot, value
            pivot += step
        else:
            upper_pivot, upper = pivot, value
            pivot -= step
        value = table[pivot]
    upper = table[255] if upper_pivot == 255 else upper
    lower = table[0] if lower_pivot == 0 else lower
    if x > value:
        return upper_pivot if x > (upper + value) * HALF else pivot
    return lower_pivot if x < (lower + value) * HALF else pivot
