"""What is recorded, the tables made of it, and the claims held against it."""

import dataclasses
import json
from pathlib import Path

import pytest

from jaxtune import cli
from jaxtune.bench.claims import CLAIMS, NOT_MEASURED, Claim, answer, judge
from jaxtune.bench.results import HF, OURS, Result, find, read_results, write_results
from jaxtune.bench.tables import block, replaced
from jaxtune.bench.workloads import PEAK, RATE, TIME, WORKLOADS
from tests.jaxtune.bench.tiny import TINY
from tests.perf.record import merged, rows_of

README = Path(__file__).parents[3] / "README.md"


def row(workload: str, system: str, quantity: str, value: float, **more: str) -> Result:
    given = {"unit": "ms", "device": "NVIDIA H200", "versions": "", "recorded": "", "commit": ""}
    given |= {"command": "", "source": "", **more}
    return Result(workload=workload, system=system, quantity=quantity, value=value, **given)


def test_readme_shows_what_is_recorded() -> None:
    assert block(read_results()) in README.read_text("utf-8"), "python -m tests.perf.record"


def test_rows_name_their_device_versions_and_source() -> None:
    results = read_results()
    keys = [(r.workload, r.system, r.quantity, r.device) for r in results]
    assert len(set(keys)) == len(keys)
    known = {work.name for work in WORKLOADS} | {"1b", "8b_cross_entropy"}
    for result in results:
        assert result.workload in known
        assert result.device.startswith("NVIDIA ")
        assert result.versions
        assert result.source
        assert result.value > 0
        assert bool(result.command) == (result.system == OURS or "cross" in result.workload)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = read_results()
    write_results(list(reversed(results)), tmp_path / "results.csv")
    assert read_results(tmp_path / "results.csv") == results
    (tmp_path / "results.csv").write_text("workload,value\n")
    with pytest.raises(ValueError, match=r"must have the columns workload, system"):
        read_results(tmp_path / "results.csv")


def test_a_page_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="end of results"):
        replaced("<!-- results -->", [])


def test_each_command_is_one_that_the_program_takes(monkeypatch) -> None:
    taken = []
    monkeypatch.setattr("jaxtune.bench.run.run", lambda options: taken.append(options) or 0)
    for work in WORKLOADS:
        assert cli.main(["bench", *work.arguments]) == 0
        assert taken.pop() == work.options
        assert work.command.startswith("jaxtune bench --model ")
    assert len({work.name for work in WORKLOADS}) == len(WORKLOADS)
    assert len({work.label for work in WORKLOADS}) == len(WORKLOADS)


@pytest.mark.slow
def test_a_records_numbers_become_rows(tmp_path: Path) -> None:
    """The paths of the quantities lead through real records."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    records = {}
    for mode, more in (("step", ["--length", "16"]), ("generate", ["--generate", "--rows", "1"])):
        sizes = ["--prompt", "4", "--new-tokens", "3"] if mode == "generate" else []
        file = tmp_path / f"{mode}.json"
        given = ["--model", str(tmp_path), "--bits", "16", "--output", str(file)]
        assert cli.main(["bench", *given, *more, *sizes]) == 0
        records[mode] = json.loads(file.read_text())
    for work in WORKLOADS:
        if work.options.notebook:
            continue
        record = records["generate" if work.options.generate else "step"]
        rows = rows_of(work, record, "abc")
        assert [r.quantity for r in rows] == [q.name for q in work.quantities]
        assert all(r.value > 0 and r.commit == "abc" for r in rows)


def test_measured_anew_a_row_is_replaced() -> None:
    old = [row("a", OURS, TIME, 1.0), row("a", OURS, TIME, 2.0, device="NVIDIA L4")]
    new = [row("a", OURS, TIME, 3.0)]
    assert merged(old, new) == [old[1], new[0]]
    assert find(merged(old, new), "a", OURS, TIME) == 3.0


def claim(**fields: object) -> Claim:
    given = {"said": "s", "where": "w", "kind": "times", "bound": 2.0}
    return Claim(**{**given, **fields})


@pytest.mark.parametrize(("ours", "holds", "seen"), [(5.0, True, "2.00"), (5.1, False, "1.96")])
def test_times_are_theirs_over_ours(ours: float, holds: bool, seen: str) -> None:
    results = [row("a", HF, TIME, 10.0), row("b", HF, TIME, 12.0), row("a", OURS, TIME, ours)]
    rows = {"theirs": (("a", HF, TIME), ("b", HF, TIME)), "ours": (("a", OURS, TIME),)}
    verdict = judge(claim(**rows), results)
    assert (verdict.holds, verdict.seen) == (holds, f"{seen} times")
    assert answer(verdict) == ("true at w" if holds else "false")


def test_rates_are_ours_over_theirs() -> None:
    results = [row("a", HF, RATE, 10.0), row("a", OURS, RATE, 30.0)]
    rows = {"theirs": (("a", HF, RATE),), "ours": (("a", OURS, RATE),)}
    assert judge(claim(**rows), results).seen == "3.00 times"


@pytest.mark.parametrize(("ours", "holds"), [(3.0, True), (3.1, False)])
def test_less_is_a_share_and_most_a_bound(ours: float, holds: bool) -> None:
    results = [row("a", HF, PEAK, 10.0, unit="GiB"), row("a", OURS, PEAK, ours, unit="GiB")]
    rows = {"theirs": (("a", HF, PEAK),), "ours": (("a", OURS, PEAK),)}
    assert judge(claim(kind="less", bound=0.7, **rows), results).holds == holds
    most = claim(kind="most", bound=3.0, ours=rows["ours"])
    assert judge(most, results).holds == holds


def test_what_is_not_measured_is_said_to_be_so() -> None:
    for one in CLAIMS:
        verdict = judge(one, [])
        assert verdict.holds is None
        assert answer(verdict) == verdict.ours == NOT_MEASURED


def test_the_program_prints_every_claim(capsys) -> None:
    assert cli.main(["bench", "--claims"]) == 0
    out = capsys.readouterr().out
    for one in CLAIMS:
        assert f"{one.said:<45}{one.where}" in out
    with pytest.raises(SystemExit):
        cli.main(["bench", "--claims", "--model", "gemma-2b"])


def test_a_claim_names_rows_that_can_be_measured() -> None:
    known = {work.name for work in WORKLOADS} | {"1b", "8b_cross_entropy"}
    for one in CLAIMS:
        assert {workload for workload, _, _ in (*one.theirs, *one.ours)} <= known
        assert dataclasses.asdict(one)["bound"] > 0
