"""What the device reaches on the two things a step cannot do without: products and copies."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxtune.bench.floors import Rates
from jaxtune.config import DecoderConfig

GIB = 2**30
ON_CPU = 16 * 2**20
CALLS = 5
GROUPS = 5


def measure_rates(config: DecoderConfig, tokens: int, dtype: DTypeLike) -> Rates:
    """Measure the device at the step's own sizes.

    matmul: the better of [T, D] x [F, D]^T and [T, F] x [D, F]^T, 2 T D F FLOPs each;
    copy: the better of a plain copy and x + 1 in float32, bytes read plus bytes written.
    Best of five groups of five calls: what the device can do, not what it does on average.

    Args:
      config: For D and F.
      tokens: T of a micro-batch.
      dtype: Of the products.

    Returns:
      FLOP/s and bytes/s.
    """
    width, inner = config.hidden_size, config.intermediate_size
    flops = 2.0 * tokens * width * inner
    product = jax.jit(lambda x, w: x @ w.T)
    seconds = []
    for rows_in, rows_out in ((width, inner), (inner, width)):
        x = _random(0, (tokens, rows_in), dtype)
        w = _random(1, (rows_out, rows_in), dtype)
        seconds.append(best_seconds(product, (x, w)))
    x = jnp.zeros(copied_bytes(jax.devices()[0]) // 4, jnp.float32)
    copying = min(best_seconds(jax.jit(f), (x,)) for f in (jnp.copy, lambda x: x + 1))
    return Rates(matmul=flops / min(seconds), copy=2.0 * x.nbytes / copying)


def best_seconds(function: Callable[..., Any], arguments: Sequence[Any]) -> float:
    """Seconds a call of a compiled function in the best group of calls."""
    result = jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(GROUPS):
        start = time.perf_counter()
        for _ in range(CALLS):
            result = function(*arguments)  # calls are made in order: the last is ready last
        jax.block_until_ready(result)
        best = min(best, (time.perf_counter() - start) / CALLS)
    return best


def copied_bytes(device: jax.Device) -> int:
    """Size of the array to copy: 1 GiB, less where an eighth of the free memory is less."""
    if device.platform == "cpu":
        return ON_CPU
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 8 * GIB) - stats.get("bytes_in_use", 0)
    return max(4, min(GIB, free // 8))


def _random(seed: int, shape: tuple[int, int], dtype: DTypeLike) -> jax.Array:
    """Random values: a GPU's clock depends on the bits that flip."""
    return jax.random.normal(jax.random.key(seed), shape, jnp.dtype(dtype))
