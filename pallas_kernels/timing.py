"""Timing of asynchronous programs, and of what the device can do at best."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

WARM_UP = 3
LEAST_US = 5000.0  # of a timed run, so that one wait for the device does not count
MOST_CALLS = 2000  # of a timed run
CACHE_BYTES = 60 * 10**6  # second-level cache of the largest GPUs
MOST_SETS = 64


@dataclass(frozen=True, kw_only=True)
class Times:
    """What was measured.

    Attributes:
      us: Microseconds of one call, of every run, sorted.
      calls: Calls of a run, which follow each other without a wait.
    """

    us: Sequence[float]
    calls: int


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the device reaches on plain work.

    Attributes:
      copy_gb_per_s: Bytes read plus bytes written by a copy, in 1e9 bytes a second.
      matmul_tflop_per_s: Of a square bfloat16 product, in 1e12 operations a second.
      dispatch_us: The host's time to start a program that does nothing: what takes little more
        is bound by the host, and its own time is not known.
    """

    copy_gb_per_s: float
    matmul_tflop_per_s: float
    dispatch_us: float

    def floor_us(self, moved_bytes: int | None, flops: int | None) -> float | None:
        """Least time for some work in microseconds; None if nothing is known of it."""
        if moved_bytes is None and flops is None:
            return None
        copy = (moved_bytes or 0) / self.copy_gb_per_s / 1e3
        return max(copy, (flops or 0) / self.matmul_tflop_per_s / 1e6)


def measure(
    call: Callable[[int], Any],
    runs: int,
    *,
    wait: Callable[[Any], Any] = jax.block_until_ready,
    least_us: float = LEAST_US,
) -> Times:
    """Time a call, without the time that the host takes to start it and to hear of its end.

    A run is as many calls as take `least_us`: the device works through them while the host starts
    further ones, and only the last is waited for.

    Args:
      call: Starts the n-th call and gives its result; n may choose among equal inputs.
      runs: Timed runs.
      wait: Returns when a result is there, and so is all that was started before.
      least_us: Microseconds of a run, at least.
    """

    def run(calls: int) -> float:
        start = time.perf_counter()
        result = None
        for n in range(calls):
            result = call(n)
        wait(result)
        return (time.perf_counter() - start) * 1e6

    for _ in range(WARM_UP):
        run(1)
    calls, taken = 1, run(1)
    while taken < least_us and calls < MOST_CALLS:
        # A tenth more, and at most tenfold: one call alone is mostly waiting.
        calls = min(math.ceil(calls * min(10.0, 1.1 * least_us / taken)), MOST_CALLS)
        taken = run(calls)
    return Times(us=sorted(run(calls) / calls for _ in range(runs)), calls=calls)


def input_sets(inputs: Any) -> list[Any]:
    """Copies of some inputs, so many that a cycle through them never finds one in the cache."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(inputs))
    if size >= CACHE_BYTES:
        return [inputs]
    count = min(max(math.ceil(2 * CACHE_BYTES / max(size, 1)), 1), MOST_SETS)
    return [inputs, *(jax.tree.map(jnp.copy, inputs) for _ in range(count - 1))]


def measure_rates(*, copied_bytes: int = 2**30, width: int = 8192, runs: int = 20) -> Rates:
    """Measure the device: a copy, a square product and a program that does nothing.

    Args:
      copied_bytes: Size of the array that is copied, far above the cache's.
      width: Of the square matrices.
      runs: Timed runs of each.
    """
    array = jnp.zeros(copied_bytes // 4, jnp.float32)
    copied = _median_us(jnp.copy, (array,), runs)
    # Of ones it would be faster: fewer bits change.
    matrix = jax.random.normal(jax.random.key(0), (width, width), jnp.bfloat16)
    multiplied = _median_us(jnp.matmul, (matrix, matrix), runs)
    return Rates(
        copy_gb_per_s=2 * array.nbytes / copied / 1e3,
        matmul_tflop_per_s=2 * width**3 / multiplied / 1e6,
        dispatch_us=_median_us(jnp.negative, (jnp.zeros(()),), runs),
    )


def _median_us(function: Callable[..., Any], arguments: tuple[Any, ...], runs: int) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    times = measure(lambda _: compiled(*arguments), runs).us
    return times[len(times) // 2]
