"""Timing of the ops: `python -m pallas_kernels.benchmark OP [--cases NAME ...] [--output CSV]`."""

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pallas_kernels.attention import bench as attention_bench
from pallas_kernels.cross_entropy import bench as cross_entropy_bench
from pallas_kernels.nf4 import bench as nf4_bench
from pallas_kernels.nf4_matmul import bench as nf4_matmul_bench

OPS: dict[str, ModuleType] = {
    "attention": attention_bench,
    "cross_entropy": cross_entropy_bench,
    "nf4": nf4_bench,
    "nf4_matmul": nf4_matmul_bench,
}
WARM_UP = 3
MINIMUM_RUNS = 20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in microseconds.

    Attributes:
      gb_per_s: `moved_bytes` of the op's `bench` over the median, 1e9 bytes a second; None where
        it names none, as for an op that is bound by arithmetic.
      peak_bytes: Of the compiled program, arguments included; None if the compiler tells not.
    """

    op: str
    case: str
    provider: str
    direction: str
    p50_us: float
    p20_us: float
    p80_us: float
    gb_per_s: float | None
    peak_bytes: int | None
    runs: int
    device: str
    jax: str
    date: str


@runtime_checkable
class Stream(Protocol):
    """A text file, standard output or a buffer."""

    def write(self, text: str, /) -> int:
        """Write text."""
        ...

    def flush(self) -> None:
        """Hand on what was written."""
        ...


def measure(function: Callable[..., Any], arguments: Sequence[Any], runs: int) -> list[float]:
    """Time a compiled function, waiting for its result each time.

    Returns:
      Sorted times in microseconds.
    """
    for _ in range(WARM_UP):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append((time.perf_counter() - start) * 1e6)
    return sorted(times)


def rows(op: str, cases: Sequence[str] | None = None, runs: int = MINIMUM_RUNS) -> Iterator[Row]:
    """Measure every provider of an op on its cases, forward and forward+backward.

    An op whose `arguments` give nothing to differentiate has no backward.

    Args:
      op: A key of `OPS`.
      cases: Names of the op's cases; None takes all.
      runs: Timed runs of each program, >= 20.

    Raises:
      ValueError: an unknown op or case, or too few runs.
    """
    if op not in OPS:
        raise ValueError(f"`op` must be one of {', '.join(OPS)}; got {op!r}.")
    if runs < MINIMUM_RUNS:
        raise ValueError(f"`runs` must be >= {MINIMUM_RUNS} for percentiles; got {runs}.")
    bench = OPS[op]
    for name in cases or bench.CASES:
        if name not in bench.CASES:
            raise ValueError(f"`{op}` has the cases {', '.join(bench.CASES)}; got {name!r}.")
        case = bench.CASES[name]
        arrays, rest = bench.arguments(case)
        for provider, function in bench.PROVIDERS.items():
            for direction, program in _programs(function, case, arrays).items():
                compiled = jax.jit(program).lower(arrays, rest).compile()
                times = measure(compiled, (arrays, rest), runs)
                deciles = statistics.quantiles(times, n=10)
                yield Row(
                    op=op,
                    case=name,
                    provider=provider,
                    direction=direction,
                    p50_us=round(deciles[4], 1),
                    p20_us=round(deciles[1], 1),
                    p80_us=round(deciles[7], 1),
                    gb_per_s=_rate(bench, case, direction, deciles[4]),
                    peak_bytes=getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None),
                    runs=runs,
                    device=jax.local_devices()[0].device_kind,
                    jax=jax.__version__,
                    date=datetime.now(UTC).date().isoformat(),
                )


def write_csv(measured: Iterator[Row], stream: Stream) -> None:
    """Write rows as they come."""
    writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
    writer.writeheader()
    for row in measured:
        writer.writerow(asdict(row))
        stream.flush()


def _rate(bench: ModuleType, case: Any, direction: str, microseconds: float) -> float | None:
    if direction != "forward" or not hasattr(bench, "moved_bytes"):
        return None
    return round(bench.moved_bytes(case) / microseconds / 1e3, 1)


def _programs(
    function: Callable[..., Any], case: Any, arrays: tuple[Any, ...]
) -> dict[str, Callable[..., Any]]:
    def forward(arrays: tuple[Any, ...], rest: tuple[Any, ...]) -> Any:
        return function(case, arrays, rest)

    def both(arrays: tuple[Any, ...], rest: tuple[Any, ...]) -> Any:
        y, pull = jax.vjp(lambda *a: function(case, a, rest), *arrays)
        return y, pull(jnp.ones_like(y))

    return {"forward": forward} | ({"forward+backward": both} if arrays else {})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.benchmark")
    parser.add_argument("op", choices=sorted(OPS))
    parser.add_argument("--cases", nargs="+", help="names of cases; all if left out")
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS)
    parser.add_argument("--output", type=Path, help="CSV file; standard output if left out")
    options = parser.parse_args()
    measured = rows(options.op, options.cases, options.runs)
    if options.output is None:
        write_csv(measured, sys.stdout)
    else:
        with options.output.open("w", newline="") as stream:
            write_csv(measured, stream)


if __name__ == "__main__":
    main()
