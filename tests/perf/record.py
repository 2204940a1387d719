"""Measure rows of README's table and write them down: `python -m tests.perf.record [NAME ...]`.

Rows of `jaxtune/bench/results.csv` for this device are replaced, and README's tables made anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxtune.bench.results import OURS, Result, read_results, write_results
from jaxtune.bench.tables import replaced
from jaxtune.bench.workloads import WORKLOADS, Workload

README = Path(__file__).parents[2] / "README.md"


def measure(workload: Workload, own: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a workload, measured by its command in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "record.json"
        command = [sys.executable, "-m", "jaxtune", "bench", *workload.arguments, *own]
        subprocess.run([*command, "--output", str(output)], check=True)
        return json.loads(output.read_text("utf-8"))


def rows_of(workload: Workload, record: dict[str, Any], commit: str) -> list[Result]:
    """A row for each number that is kept of a record."""
    versions = record["versions"]
    return [
        Result(
            workload=workload.name,
            system=OURS,
            quantity=quantity.name,
            value=float(f"{quantity.of(record):.4g}"),
            unit=quantity.unit,
            device=record["device"]["kind"],
            versions=f"jax {versions['jax']}",
            recorded=datetime.now(UTC).date().isoformat(),
            commit=commit,
            command=workload.command,
            source="tests/perf/record.py",
        )
        for quantity in workload.quantities
    ]


def merged(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    """The old rows but for those that are measured anew, and the new ones."""

    def key(result: Result) -> tuple[str, ...]:
        return result.workload, result.system, result.quantity, result.device

    taken = {key(result) for result in new}
    return [result for result in old if key(result) not in taken] + list(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    known = {workload.name: workload for workload in WORKLOADS}
    parser.add_argument("names", nargs="*", help=f"of {', '.join(known)}; none: all")
    for name in ("weights", "tokenizer", "dataset"):
        parser.add_argument(f"--{name}", help="of the notebook")
    given = parser.parse_args()
    own = [
        word
        for name in ("weights", "tokenizer", "dataset")
        if getattr(given, name)
        for word in (f"--{name}", getattr(given, name))
    ]
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    for name in given.names or known:
        workload = known[name]
        record = measure(workload, own if workload.options.notebook else ())
        # Written after each, for the next may not fit the device.
        results = merged(read_results(), rows_of(workload, record, commit))
        write_results(results)
        README.write_text(replaced(README.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main()
