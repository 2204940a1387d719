"""What was measured, as the repository keeps it: one number a row of results.csv."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.csv")
OURS, UNSLOTH, LIGER = "jaxtune", "Unsloth", "Liger"
HF, HF_KEPT = "transformers + peft", "transformers + peft, no checkpointing"
H200 = "NVIDIA H200"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A number and where it comes from.

    Attributes:
      workload: Of `workloads.WORKLOADS`, or another that a claim is about.
      system: Whose it is.
      quantity: What was measured.
      value: In `unit`.
      unit: Of the value.
      device: That it was measured on.
      versions: Of what counts.
      recorded: Day of the record, as in ISO 8601; "" where it is not known.
      commit: That the number was recorded by, or measured with; "" likewise.
      command: How it was measured; "" where that is not ours.
      source: Where it is told.
    """

    workload: str
    system: str
    quantity: str
    value: float
    unit: str
    device: str
    versions: str
    recorded: str
    commit: str
    command: str
    source: str


COLUMNS = tuple(field.name for field in dataclasses.fields(Result))


def read_results(file: Path = FILE) -> list[Result]:
    """The rows of a file.

    Raises:
      ValueError: Other columns, or a value that is no number.
    """
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(
                f"results must have the columns {', '.join(COLUMNS)}; {file} has "
                f"{', '.join(reader.fieldnames or ())}."
            )
        rows: list[dict[str, Any]] = [{**row, "value": float(row["value"])} for row in reader]
        return [Result(**row) for row in rows]


def write_results(results: Sequence[Result], file: Path = FILE) -> None:
    """Write rows, in the order of workload, system, quantity and device."""
    ordered = sorted(results, key=lambda r: (r.workload, r.system, r.quantity, r.device))
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(result, name)) for name in COLUMNS] for result in ordered)


def _cell(value: str | float) -> str:
    return f"{value:g}" if isinstance(value, float) else value


def find(
    results: Sequence[Result], workload: str, system: str, quantity: str, device: str = H200
) -> float | None:
    """The number of a row; None where there is none."""
    wanted = workload, system, quantity, device
    for result in results:
        if (result.workload, result.system, result.quantity, result.device) == wanted:
            return result.value
    return None
