"""No row of README's table is worse than what is recorded for the same kind of device."""

from pathlib import Path

import jax
import pytest

from jaxtune.bench.results import OURS, Result, find, read_results
from jaxtune.bench.workloads import WORKLOADS, Workload
from tests.perf.record import measure, rows_of
from tests.tolerances import RECORDED

MORE_IS_BETTER = ("tokens/s",)


def worse(measured: Result, recorded: float) -> str | None:
    """What is worse than recorded by more than is allowed; None: nothing."""
    share = measured.value / recorded - 1
    share = -share if measured.unit in MORE_IS_BETTER else share
    if share <= RECORDED[measured.unit]:
        return None
    return f"{measured.quantity}: {measured.value:g} {measured.unit}, recorded {recorded:g}"


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_nothing_is_worse_than_recorded(workload: Workload, assets: Path, tmp_path: Path) -> None:
    device, results = jax.devices()[0].device_kind, read_results()
    known = [find(results, workload.name, OURS, q.name, device) for q in workload.quantities]
    if not any(known):
        pytest.skip(f"no row for {device}: python -m tests.perf.record {workload.name}")
    own = []
    if workload.options.notebook:
        own = ["--weights", str(tmp_path / "model")]
        own += ["--tokenizer", str(assets / "tokenizers" / "llama3.2")]
        own += ["--dataset", str(assets / "data" / "alpaca" / "alpaca_en_1000.jsonl")]
    rows = rows_of(workload, measure(workload, own), "")
    pairs = zip(rows, known, strict=True)
    found = [worse(row, recorded) for row, recorded in pairs if recorded is not None]
    assert not any(found), found


def row(value: float, unit: str) -> Result:
    fields = dict.fromkeys(Result.__dataclass_fields__, "")
    return Result(**{**fields, "value": value, "unit": unit, "quantity": "q"})


@pytest.mark.parametrize(
    ("value", "unit", "is_worse"),
    [
        (105.0, "ms", False),
        (107.0, "ms", True),
        (50.0, "ms", False),
        (104.0, "GiB", True),
        (90.0, "tokens/s", True),
        (200.0, "tokens/s", False),
    ],
)
def test_what_counts_as_worse(value: float, unit: str, is_worse: bool) -> None:
    assert (worse(row(value, unit), 100.0) is not None) == is_worse
