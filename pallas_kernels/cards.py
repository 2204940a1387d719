"""A page about each op: what it computes, what that costs at least, what was measured."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from pallas_kernels.measured import Row, Skipped, cells
from pallas_kernels.timing import Rates

COLUMNS = (
    "case", "direction", "provider", "p50_us", "floor_us", "percent", "gb_per_s", "tflop_per_s",
    "moved_bytes", "flops", "peak_bytes",
)  # fmt: skip


def card(op: str, bench: ModuleType, measured: Sequence[Row | Skipped], rates: Rates | None) -> str:
    """Write an op's page in Markdown.

    Args:
      op: Its name.
      bench: Its `bench`; what it has as `FORMULA` is quoted, else its docstring.
      measured: Lines about this op.
      rates: Of the device.
    """
    rows = [row for row in measured if isinstance(row, Row)]
    skipped = [row for row in measured if isinstance(row, Skipped)]
    lines = [f"# {op}", "", "```", (getattr(bench, "FORMULA", None) or bench.__doc__ or "").strip()]
    lines += ["```", ""]
    if rows:
        lines += [f"{rows[0].device}, JAX {rows[0].jax}, {rows[0].date}."]
    if rates is not None:
        lines += [
            f"Its copy reaches {rates.copy_gb_per_s:.0f} GB/s (read plus written), its bfloat16 "
            f"product {rates.matmul_tflop_per_s:.0f} TFLOP/s, and the host starts a program in "
            f"{rates.dispatch_us:.1f} us. The floor is the larger of moved_bytes and flops at "
            "these rates; percent is the floor's share of p50_us.",
        ]
    lines += ["", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(cells(row, COLUMNS)) for row in rows]
    if skipped:
        lines += ["", "Not measured:", ""]
        lines += [f"- {s.case}, {s.direction}, {s.provider}: {s.reason}" for s in skipped]
    return "\n".join(lines) + "\n"


def write_card(
    folder: Path,
    op: str,
    bench: ModuleType,
    measured: Sequence[Row | Skipped],
    rates: Rates | None,
) -> None:
    """Write an op's page into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{op}.md").write_text(card(op, bench, measured, rates), encoding="utf-8")


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
