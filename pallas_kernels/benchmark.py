"""Timing of the ops: `python -m pallas_kernels.benchmark [OP] [--cases NAME ...] [--output CSV]`.

Beside the ops stand their references under `jit` and, with `--peers MODULE`, the kernels of other
libraries. Such a module has `programs(op, case, direction, sets)`, which gives by each library's
name a function that starts the n-th call or the reason why there is none, and `wait(result)`.
"""

import argparse
import functools
import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from pallas_kernels.adam_8bit import bench as adam_8bit_bench
from pallas_kernels.attention import bench as attention_bench
from pallas_kernels.blockwise_quant import bench as blockwise_quant_bench
from pallas_kernels.cards import write_card
from pallas_kernels.cross_entropy import bench as cross_entropy_bench
from pallas_kernels.cross_entropy import rows_bench as cross_entropy_rows_bench
from pallas_kernels.dispatch import Unsupported
from pallas_kernels.glu import bench as glu_bench
from pallas_kernels.lora_linear import bench as lora_linear_bench
from pallas_kernels.measured import Row, Skipped, table_line, write_csv
from pallas_kernels.nf4 import bench as nf4_bench
from pallas_kernels.nf4_matmul import bench as nf4_matmul_bench
from pallas_kernels.rms_norm import bench as rms_norm_bench
from pallas_kernels.timing import Rates, input_sets, measure, measure_rates

OPS: dict[str, ModuleType] = {
    "adam_8bit": adam_8bit_bench,
    "attention": attention_bench,
    "blockwise_quant": blockwise_quant_bench,
    "cross_entropy": cross_entropy_bench,
    "cross_entropy_rows": cross_entropy_rows_bench,
    "glu": glu_bench,
    "lora_linear": lora_linear_bench,
    "nf4": nf4_bench,
    "nf4_matmul": nf4_matmul_bench,
    "rms_norm": rms_norm_bench,
}
MINIMUM_RUNS = 20
TOGETHER = 8  # sets of small inputs that one program works through
DIRECTIONS = {"forward": "", "forward+backward": "_both"}  # suffix of what `bench` says of each
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")


def rows(
    op: str,
    cases: Sequence[str] | None = None,
    runs: int = MINIMUM_RUNS,
    *,
    rates: Rates | None = None,
    peers: ModuleType | None = None,
) -> Iterator[Row | Skipped]:
    """Measure every provider of an op on its cases, forward and forward+backward.

    An op whose `arguments` give nothing to differentiate has no backward. Its `bench` may say what
    the work is at least: `moved_bytes(case)` and `flops(case)` of the forward, `moved_bytes_both`
    and `flops_both` of both directions; and make `input_sets(case, arrays, rest)` of its own, where
    copies of all inputs would be too large or would not keep them out of the cache.

    Args:
      op: A key of `OPS`.
      cases: Names of the op's cases; None takes all.
      runs: Timed runs of each program, >= 20.
      rates: Of the device, for the floors.
      peers: Other libraries' kernels, as the module's docstring says.

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
        sets = _input_sets(bench, case)
        for direction in DIRECTIONS if sets[0][0] else ["forward"]:
            timed = functools.partial(_timed, op, name, direction, runs, rates)
            for provider, function in bench.PROVIDERS.items():
                prepare = functools.partial(_compiled, function, case, direction, sets)
                yield timed(provider, prepare)
            if peers is None:
                continue
            found = peers.programs(op, case, direction, sets)
            for provider, call in found.items():
                if isinstance(call, str):
                    yield _skipped(op, name, direction, provider, call)
                else:
                    yield timed(provider, lambda call=call: (call, None, 1), peers.wait)


def _input_sets(bench: ModuleType, case: Any) -> list[tuple[Any, Any]]:
    arrays, rest = bench.arguments(case)
    if hasattr(bench, "input_sets"):
        return bench.input_sets(case, arrays, rest)
    return input_sets((arrays, rest))


def _program(function: Callable[..., Any], case: Any, direction: str) -> Callable[..., Any]:
    def forward(arrays: tuple[Any, ...], rest: tuple[Any, ...]) -> Any:
        return function(case, arrays, rest)

    def both(arrays: tuple[Any, ...], rest: tuple[Any, ...], dy: Any) -> Any:
        y, pull = jax.vjp(lambda *a: function(case, a, rest), *arrays)
        return y, pull(dy)

    return forward if direction == "forward" else both


def _compiled(
    function: Callable[..., Any], case: Any, direction: str, sets: Sequence[tuple[Any, Any]]
) -> tuple[Callable[[int], Any], int | None, int]:
    """Give what starts the n-th call, the op's peak memory in bytes, and how often a call does it.

    A call works through several sets of small inputs, since the host starts no program as fast as
    the device ends such a one.
    """
    given: Sequence[tuple[Any, ...]] = sets
    if direction != "forward":
        # An operand: of a constant the compiler would read nothing. And random: products of ones
        # are faster, since fewer bits change.
        y = jax.eval_shape(functools.partial(function, case), *sets[0])
        key = jax.random.key(1)
        dy = jax.tree.map(lambda one: jax.random.normal(key, one.shape, one.dtype), y)
        given = [(*each, dy) for each in sets]
    program = _program(function, case, direction)
    compiled = jax.jit(program).lower(*given[0]).compile()
    peak = getattr(compiled.memory_analysis(), "peak_memory_in_bytes", None)
    count = min(len(given), TOGETHER)
    if count == 1:
        return lambda n: compiled(*given[n % len(given)]), peak, 1
    groups = [given[first : first + count] for first in range(0, len(given), count)]
    groups = [group for group in groups if len(group) == count]
    together = jax.jit(functools.partial(_one_by_one, program)).lower(groups[0]).compile()
    return lambda n: together(groups[n % len(groups)]), peak, count


def _one_by_one(program: Callable[..., Any], group: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results for all sets of inputs, none begun before the one before it has ended."""
    results: list[Any] = []
    for inputs in group:
        if results:
            inputs, results[-1] = jax.lax.optimization_barrier((inputs, results[-1]))
        results.append(program(*inputs))
    return results


def _timed(
    op: str,
    name: str,
    direction: str,
    runs: int,
    rates: Rates | None,
    provider: str,
    prepare: Callable[[], tuple[Callable[[int], Any], int | None, int]],
    wait: Callable[[Any], Any] = jax.block_until_ready,
) -> Row | Skipped:
    try:
        call, peak, count = prepare()
        times = measure(call, runs, wait=wait)
    except Unsupported as refusal:
        return _skipped(op, name, direction, provider, str(refusal))
    except RuntimeError as error:  # JAX's and torch's errors of the device are such
        if not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        return _skipped(op, name, direction, provider, "out of memory")
    deciles = [us / count for us in statistics.quantiles(times.us, n=10)]
    moved, flops = (
        _work(op, name, f"{w}{DIRECTIONS[direction]}") for w in ("moved_bytes", "flops")
    )
    floor = None if rates is None else rates.floor_us(moved, flops)
    return Row(
        op=op,
        case=name,
        provider=provider,
        direction=direction,
        p50_us=round(deciles[4], 1),
        p20_us=round(deciles[1], 1),
        p80_us=round(deciles[7], 1),
        gb_per_s=None if moved is None else round(moved / deciles[4] / 1e3, 1),
        tflop_per_s=None if flops is None else round(flops / deciles[4] / 1e6, 1),
        moved_bytes=moved,
        flops=flops,
        floor_us=None if floor is None else round(floor, 1),
        percent=None if floor is None else round(100 * floor / deciles[4], 1),
        peak_bytes=peak,
        calls=times.calls * count,
        runs=runs,
        device=jax.local_devices()[0].device_kind,
        jax=jax.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def _work(op: str, name: str, quantity: str) -> int | None:
    bench = OPS[op]
    return getattr(bench, quantity)(bench.CASES[name]) if hasattr(bench, quantity) else None


def _skipped(op: str, name: str, direction: str, provider: str, reason: str) -> Skipped:
    return Skipped(op=op, case=name, direction=direction, provider=provider, reason=reason)


def _printed(
    measured: Iterator[Row | Skipped], kept: list[Row | Skipped]
) -> Iterator[Row | Skipped]:
    """Print lines as they come, keep them and hand them on."""
    for row in measured:
        print(table_line(row), flush=True)
        kept.append(row)
        yield row


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
      arguments: Of the command line; None takes the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m pallas_kernels.benchmark")
    parser.add_argument("op", nargs="?", choices=sorted(OPS), help="all ops if left out")
    parser.add_argument("--cases", nargs="+", help="names of the op's cases; all if left out")
    parser.add_argument("--runs", type=int, default=MINIMUM_RUNS)
    parser.add_argument("--output", type=Path, help="CSV file")
    parser.add_argument("--cards", type=Path, help="folder for a page about each op")
    parser.add_argument("--peers", help="module of other libraries' kernels: tests.perf.peers")
    options = parser.parse_args(arguments)
    if options.cases and options.op is None:
        parser.error("--cases needs an OP")
    peers = None if options.peers is None else importlib.import_module(options.peers)
    rates = measure_rates()
    print(
        f"copy {rates.copy_gb_per_s:.0f} GB/s, bfloat16 product {rates.matmul_tflop_per_s:.0f} "
        f"TFLOP/s, dispatch {rates.dispatch_us:.1f} us\n{table_line(None)}",
        flush=True,
    )

    def measured() -> Iterator[Row | Skipped]:
        for op in [options.op] if options.op else OPS:
            kept: list[Row | Skipped] = []
            lines = rows(op, options.cases, options.runs, rates=rates, peers=peers)
            yield from _printed(lines, kept)
            if options.cards is not None:
                write_card(options.cards, op, OPS[op], kept, rates)

    if options.output is None:
        for _ in measured():
            pass
        return
    with options.output.open("w", newline="") as stream:
        write_csv(measured(), stream)


if __name__ == "__main__":
    main()
