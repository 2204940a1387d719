"""The largest step of a run, compiled before its first one: what it needs is known then."""

from typing import Any

import jax

from jaxtune.data.collate import Window
from jaxtune.data.plan import Plan
from jaxtune.data.stream_plan import StreamPlan
from jaxtune.memory import GIB
from jaxtune.training.train_rows import TrainRows, known_rows


def largest_window(plan: Plan | StreamPlan, rows: TrainRows) -> Window | None:
    """A window of the largest shape, if windows have several.

    Args:
      plan: How the rows are laid out.
      rows: The rows; of a stream, its head is what is known.

    Returns:
      A window that holds the longest row alone; None where all windows are of one shape.
    """
    head = plan.head if isinstance(plan, StreamPlan) else plan
    if head.kind != "padded" or len(head.lengths) == 1:
        return None
    longest = int(head.bins.tokens().argmax())
    return head.lay_out(known_rows(rows), [head.bins.pieces(longest)])


def peak_of(step: Any, *arguments: Any) -> int | None:
    """Compile a step, which the compile cache keeps for the time when it is first made.

    Args:
      step: A jitted function, which can be lowered.
      arguments: Its arguments.

    Returns:
      The peak of its memory in bytes, arguments included; None if the compiler does not tell.
    """
    analysis = step.lower(*arguments).compile().memory_analysis()
    return getattr(analysis, "peak_memory_in_bytes", None)


def describe(peak: int | None, window: Window) -> str:
    """A line on the largest step."""
    rows, length = jax.tree.leaves(window.batch)[0].shape[-2:]
    takes = "" if peak is None else f": {peak / GIB:.2f} GiB at its peak"
    return f"the largest step, {rows} x {length:,} tokens, is compiled{takes}"
