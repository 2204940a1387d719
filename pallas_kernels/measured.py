"""The lines of the benchmark's table, and how they are written."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; times in microseconds.

    Attributes:
      gb_per_s: `moved_bytes` over the median, 1e9 bytes a second.
      tflop_per_s: `flops` over the median, 1e12 operations a second.
      moved_bytes: That the op must move at least; None where its `bench` does not say.
      flops: That the op must do at least; None likewise.
      floor_us: The larger of both at the device's measured rates; None without these.
      percent: The floor's share of the median.
      peak_bytes: Of the compiled program, arguments included; None if the compiler tells not.
      calls: Calls of a run, which follow each other without a wait.
    """

    op: str
    case: str
    provider: str
    direction: str
    p50_us: float
    p20_us: float
    p80_us: float
    gb_per_s: float | None
    tflop_per_s: float | None
    moved_bytes: int | None
    flops: int | None
    floor_us: float | None
    percent: float | None
    peak_bytes: int | None
    calls: int
    runs: int
    device: str
    jax: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """What was not measured, and why."""

    op: str
    case: str
    provider: str
    direction: str
    reason: str


@runtime_checkable
class Stream(Protocol):
    """A text file, standard output or a buffer."""

    def write(self, text: str, /) -> int:
        """Write text."""
        ...

    def flush(self) -> None:
        """Hand on what was written."""
        ...


WIDTHS = {
    "op": 18, "case": 22, "provider": 18, "direction": 16, "p50_us": 12, "floor_us": 12,
    "percent": 8, "gb_per_s": 9, "tflop_per_s": 12, "peak_bytes": 13,
}  # fmt: skip


def write_csv(measured: Iterable[Row | Skipped], stream: Stream) -> None:
    """Write rows as they come, without what was skipped."""
    writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
    writer.writeheader()
    for row in measured:
        if isinstance(row, Row):
            writer.writerow(asdict(row))
            stream.flush()


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """Some columns of a row as text; empty where nothing is known."""
    values = [getattr(row, name) for name in columns]
    return ["" if value is None else str(value) for value in values]


def table_line(row: Row | Skipped | None) -> str:
    """A line of the printed table; the heading for None."""
    if isinstance(row, Skipped):
        return f"{row.op} {row.case} {row.direction}: no {row.provider}: {row.reason}"
    texts = list(WIDTHS) if row is None else cells(row, list(WIDTHS))
    return " ".join(text.ljust(width) for text, width in zip(texts, WIDTHS.values(), strict=True))
