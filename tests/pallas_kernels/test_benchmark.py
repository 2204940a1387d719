"""The timing runner."""

import csv
import io
from functools import partial

import jax
import pytest

from pallas_kernels import benchmark
from pallas_kernels.cross_entropy.cases import ODD_CASES as CROSS_ENTROPY
from pallas_kernels.cross_entropy.cases import make_inputs
from pallas_kernels.nf4.cases import ODD_CASES as NF4
from tests.pallas_kernels.drawing import normal


def test_writes_a_row_for_each_provider_and_direction(monkeypatch):
    bench = benchmark.OPS["cross_entropy"]
    x, head, labels = make_inputs(CROSS_ENTROPY[1], "float32", normal(0))
    monkeypatch.setattr(bench, "CASES", {"small": CROSS_ENTROPY[1]})
    monkeypatch.setattr(bench, "arguments", lambda _: ((x,), (head, labels)))
    stream = io.StringIO()
    benchmark.write_csv(benchmark.rows("cross_entropy"), stream)
    table = list(csv.DictReader(io.StringIO(stream.getvalue())))
    assert {(r["provider"], r["direction"]) for r in table} == {
        (p, d) for p in ("ours", "reference") for d in ("forward", "forward+backward")
    }
    for row in table:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert (row["op"], row["case"], row["runs"]) == ("cross_entropy", "small", "20")
        assert row["gb_per_s"] == ""


def test_op_without_a_gradient_is_measured_forward_and_by_its_bytes(monkeypatch):
    case = next(case for case in NF4 if case.name == "rows_of_172")
    monkeypatch.setattr(benchmark.OPS["nf4"], "CASES", {"small": case})
    measured = list(benchmark.rows("nf4"))
    assert [(r.provider, r.direction) for r in measured] == [
        ("ours", "forward"),
        ("xla", "forward"),
    ]
    for row in measured:
        gigabytes = (256 * 172 * 2.5 + 688 + 3 * 4) / 1e9
        assert row.gb_per_s == pytest.approx(gigabytes / (row.p50_us / 1e6), abs=0.06, rel=0.01)


def test_nested_stack_moves_the_bytes_that_its_readme_says():
    case = benchmark.OPS["nf4"].CASES["llama3_8b_gate"]
    assert round(case.moved_bytes / (case.O * case.I), 3) == 2.516


@pytest.mark.parametrize("op", benchmark.OPS)
def test_providers_of_every_real_case_have_equal_shapes(op):
    bench = benchmark.OPS[op]
    for case in bench.CASES.values():
        arrays, rest = jax.eval_shape(lambda case=case: bench.arguments(case))
        shapes = {
            str(jax.eval_shape(partial(provider, case), arrays, rest))
            for provider in bench.PROVIDERS.values()
        }
        assert len(shapes) == 1


def test_rejects_unknown_names_and_few_runs():
    with pytest.raises(ValueError, match="got 'attend'"):
        next(benchmark.rows("attend"))
    with pytest.raises(ValueError, match="got 'tiny'"):
        next(benchmark.rows("attention", ["tiny"]))
    with pytest.raises(ValueError, match="got 5"):
        next(benchmark.rows("attention", runs=5))
