"""The timing runner."""

import csv
import io
from contextlib import suppress
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import benchmark, timing
from pallas_kernels.attention.bench import _pairs
from pallas_kernels.attention.cases import ODD_CASES as ATTENTION
from pallas_kernels.attention.cases import make_inputs as attention_inputs
from pallas_kernels.attention.reference import visible
from pallas_kernels.cross_entropy.cases import ODD_CASES as CROSS_ENTROPY
from pallas_kernels.cross_entropy.cases import make_inputs
from pallas_kernels.dispatch import Unsupported
from pallas_kernels.measured import Skipped, write_csv
from pallas_kernels.nf4.cases import ODD_CASES as NF4
from pallas_kernels.nf4.cases import REAL_CASES as NF4_REAL
from tests.pallas_kernels.drawing import normal

RATES = timing.Rates(copy_gb_per_s=1000.0, matmul_tflop_per_s=10.0, dispatch_us=1.0)
# Runs of one call, so that the tests are quick.
quick = partial(timing.measure, least_us=0.0)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Small cases, and runs of one call."""
    monkeypatch.setattr(benchmark, "measure", quick)
    bench = benchmark.OPS["cross_entropy"]
    x, head, labels = make_inputs(CROSS_ENTROPY[1], "float32", normal(0))
    monkeypatch.setattr(bench, "CASES", {"small": CROSS_ENTROPY[1]})
    monkeypatch.setattr(bench, "arguments", lambda _: ((x,), (head, labels)))
    case = next(case for case in NF4 if case.name == "rows_of_172")
    monkeypatch.setattr(benchmark.OPS["nf4"], "CASES", {"small": case})


def test_writes_a_row_for_each_provider_and_direction():
    stream = io.StringIO()
    write_csv(benchmark.rows("cross_entropy", rates=RATES), stream)
    table = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert {(r["provider"], r["direction"]) for r in table} == {
        (p, d) for p in ("ours", "xla", "reference") for d in ("forward", "forward+backward")
    }
    products = {"forward": 2 * 37 * 8 * 53, "forward+backward": 4 * 37 * 8 * 53}
    for row in table:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert (row["op"], row["case"], row["runs"]) == ("cross_entropy", "small", "20")
        assert (row["gb_per_s"], row["moved_bytes"]) == ("", "")
        assert int(row["flops"]) == products[row["direction"]]


def test_op_without_a_gradient_is_measured_forward_and_by_its_bytes():
    measured = list(benchmark.rows("nf4", rates=RATES))
    assert [(r.provider, r.direction) for r in measured] == [
        ("ours", "forward"),
        ("xla", "forward"),
    ]
    moved = 256 * 172 * 2.5 + 688 + 3 * 4
    for row in measured:
        assert row.moved_bytes == moved
        assert row.gb_per_s == pytest.approx(moved / 1e3 / row.p50_us, abs=0.06, rel=0.01)
        assert row.floor_us == pytest.approx(moved / 1e6, abs=0.06)
        assert row.percent == pytest.approx(100 * moved / 1e6 / row.p50_us, abs=0.06, rel=0.01)


def test_floor_is_the_larger_of_both_works():
    assert RATES.floor_us(10**9, None) == pytest.approx(1000.0)
    assert RATES.floor_us(None, 10**10) == pytest.approx(1000.0)
    assert RATES.floor_us(2 * 10**9, 10**10) == pytest.approx(2000.0)
    assert RATES.floor_us(None, None) is None


def test_a_run_is_many_calls_and_one_wait(monkeypatch):
    now, started, waited = [0.0], [], []

    def call(n):
        now[0] += 10e-6
        started.append(n)
        return n

    def wait(result):
        now[0] += 100e-6
        waited.append(result)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    times = timing.measure(call, 20, wait=wait, least_us=5000.0)
    assert 490 <= times.calls <= 600
    assert times.us == pytest.approx([10 + 100 / times.calls] * 20)
    assert len(times.us) == 20
    assert waited[-1] == times.calls - 1
    assert started[-times.calls :] == list(range(times.calls))


def test_inputs_that_fit_the_cache_are_many():
    small = {"a": jnp.zeros((1024, 1024)), "none": None}
    sets = timing.input_sets(small)
    assert len(sets) * 4 * 2**20 >= 2 * timing.CACHE_BYTES
    assert len({each["a"].unsafe_buffer_pointer() for each in sets}) == len(sets)
    assert len(timing.input_sets((jnp.zeros(1), None))) == timing.MOST_SETS
    assert len(timing.input_sets((jnp.zeros(timing.CACHE_BYTES // 4),))) == 1


@pytest.mark.parametrize("together", [1, 2, 3])
def test_calls_take_their_turn_among_the_sets(together, monkeypatch):
    bench = benchmark.OPS["nf4"]
    case = bench.CASES["small"]
    arrays, rest = bench.arguments(case)
    layers = [int(r[1]) for _, r in bench.input_sets(case, arrays, rest)]
    assert layers == list(range(case.L))
    sets = [((), (jnp.float32(n),)) for n in range(3)]
    monkeypatch.setattr(benchmark, "TOGETHER", together)
    call, peak, count = benchmark._compiled(
        lambda case, _, rest: rest[0] + case, 1, "forward", sets
    )
    assert count == together
    results = [jax.tree.leaves(call(n)) for n in range(4)]
    expected = {1: [[1], [2], [3], [1]], 2: [[1, 2]] * 4, 3: [[1, 2, 3]] * 4}
    assert results == expected[together]
    assert peak is None or peak >= 0


def test_rates_are_measured_and_a_copy_is_one(monkeypatch):
    monkeypatch.setattr(timing, "measure", quick)
    rates = timing.measure_rates(copied_bytes=2**16, width=16)
    assert min(rates.copy_gb_per_s, rates.matmul_tflop_per_s, rates.dispatch_us) > 0
    array = jnp.zeros(64)
    copied = jax.jit(jnp.copy).lower(array).compile()(array)
    assert copied.unsafe_buffer_pointer() != array.unsafe_buffer_pointer()


def out_of_memory(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")


def broken(*_):
    raise RuntimeError("INTERNAL: a bug")


def test_what_does_not_fit_is_left_out_and_said(monkeypatch):
    bench = benchmark.OPS["nf4"]
    monkeypatch.setattr(bench, "PROVIDERS", {"large": out_of_memory} | bench.PROVIDERS)
    first, *others = benchmark.rows("nf4")
    assert first == Skipped(
        op="nf4", case="small", provider="large", direction="forward", reason="out of memory"
    )
    assert [row.provider for row in others] == ["ours", "xla"]
    monkeypatch.setattr(bench, "PROVIDERS", {"broken": broken})
    with pytest.raises(RuntimeError, match="a bug"):
        list(benchmark.rows("nf4"))


def peers(*_):
    return {"fast": lambda n: jnp.sin(n), "absent": "No module named 'absent'"}


def test_peers_are_measured_beside_ours_or_named_with_the_reason():
    module = ModuleType("peers")
    waited = []
    module.programs, module.wait = peers, waited.append
    rows = list(benchmark.rows("nf4", peers=module))
    assert [row.provider for row in rows] == ["ours", "xla", "fast", "absent"]
    assert rows[2].peak_bytes is None
    assert len(waited) >= 20
    stream = io.StringIO()
    write_csv(rows, stream)
    assert len(stream.getvalue().splitlines()) == 1 + 3
    assert rows[3].reason == "No module named 'absent'"


@pytest.fixture
def _device_rates(monkeypatch):
    monkeypatch.setattr(benchmark, "measure_rates", lambda: RATES)


@pytest.mark.usefixtures("_device_rates")
def test_command_line_measures_all_ops_and_writes_cards(monkeypatch, tmp_path, capsys):
    kept = {op: benchmark.OPS[op] for op in ("cross_entropy", "nf4")}
    monkeypatch.setattr(benchmark, "OPS", kept)
    table, cards = tmp_path / "table.csv", tmp_path / "cards"
    benchmark.main(["--output", str(table), "--cards", str(cards)])
    printed = capsys.readouterr().out
    assert printed.startswith("copy 1000 GB/s, bfloat16 product 10 TFLOP/s, dispatch 1.0 us")
    measured = list(csv.DictReader(io.StringIO(table.read_text())))
    assert {row["op"] for row in measured} == set(kept)
    assert len(printed.splitlines()) == 2 + len(measured)
    assert {file.name for file in cards.iterdir()} == {"cross_entropy.md", "nf4.md"}
    card = (cards / "nf4.md").read_text()
    assert "w_i = bfloat16(table[code_i]" in card
    assert card.count("| small | forward | ") == 2
    row = next(row for row in measured if row["op"] == "nf4")
    assert f"| {row['p50_us']} | {row['floor_us']} | {row['percent']} |" in card


@pytest.mark.usefixtures("_device_rates")
def test_command_line_takes_one_op(capsys):
    benchmark.main(["nf4", "--cases", "small"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:3] for line in lines] == [
        ["nf4", "small", "ours"],
        ["nf4", "small", "xla"],
    ]
    with pytest.raises(SystemExit):
        benchmark.main(["--cases", "small"])


@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_operations_of_attention_count_the_visible_pairs(case):
    inputs = attention_inputs(case, "float32", normal(0))
    assert _pairs(case) == int(visible(case.options, inputs)[0].sum())


def test_nested_stack_moves_the_bytes_that_its_readme_says():
    case = next(case for case in NF4_REAL if case.name == "llama3_8b_gate")
    assert round(case.moved_bytes / (case.O * case.I), 3) == 2.516


@pytest.mark.parametrize("op", benchmark.OPS)
def test_providers_of_every_real_case_have_equal_shapes(op):
    bench = benchmark.OPS[op]
    for case in bench.CASES.values():
        arrays, rest = jax.eval_shape(lambda case=case: bench.arguments(case))
        shapes = set()
        for provider in bench.PROVIDERS.values():
            with suppress(Unsupported):  # a backend of another device
                shapes.add(str(jax.eval_shape(partial(provider, case), arrays, rest)))
        assert len(shapes) == 1


def test_provider_that_cannot_serve_has_no_row_and_says_why(monkeypatch):
    def refuses(*_):
        raise Unsupported("no such device")

    bench = benchmark.OPS["nf4"]
    case = next(case for case in NF4 if case.name == "rows_of_172")
    monkeypatch.setattr(bench, "CASES", {"small": case})
    monkeypatch.setattr(bench, "PROVIDERS", {"cudnn": refuses, "ours": bench.PROVIDERS["ours"]})
    skipped, row = benchmark.rows("nf4")
    assert (skipped.provider, skipped.reason) == ("cudnn", "no such device")
    assert row.provider == "ours"


def test_rejects_unknown_names_and_few_runs():
    with pytest.raises(ValueError, match="got 'attend'"):
        next(benchmark.rows("attend"))
    with pytest.raises(ValueError, match="got 'tiny'"):
        next(benchmark.rows("attention", ["tiny"]))
    with pytest.raises(ValueError, match="got 5"):
        next(benchmark.rows("attention", runs=5))
