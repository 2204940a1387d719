"""The table of losses in a notebook, as the Hugging Face trainer draws it."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxtune.memory import GIB, peak_memory
from jaxtune.training.callbacks import TrainerCallback
from jaxtune.training.state import TrainerState

# What an evaluation measures of itself; transformers' table leaves it out too.
COSTS = ("_runtime", "_per_second", "_num_tokens")
_EVERY = 0.2  # seconds between two drawings


class NotebookTable(TrainerCallback):
    """A bar, and below it Step, Training Loss and, of evaluations, Validation Loss and metrics."""

    def __init__(self) -> None:
        """Draw nothing yet."""
        self._clear()

    def _clear(self) -> None:
        self._columns = ["Step", "Training Loss"]
        self._rows: list[Mapping[str, Any]] = []
        self._loss: float | str = "No log"
        self._display: Any = None
        self._began, self._first_tokens, self._drawn = 0.0, 0, 0.0

    def on_train_begin(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Draw an empty bar: the first step compiles, and is long in coming."""
        self._clear()
        self._draw(state, "compiling the first step")

    def on_step_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Move the bar."""
        if not self._began:
            self._began, self._first_tokens = time.perf_counter(), state.num_input_tokens_seen
        if time.perf_counter() - self._drawn > _EVERY:
            self._draw(state, self._label(state))

    def on_log(self, args: Any, state: TrainerState, *_: Any, **more: Any) -> None:
        """Add a row; where there are evaluations, of their steps, as transformers does."""
        record = more["logs"]
        if "loss" in record:
            self._loss = record["loss"]
        evaluated = {n: v for n, v in record.items() if n.startswith("eval_")}
        if self._display is None or not (evaluated or "loss" in record):
            return
        if not evaluated and args.eval_strategy != "no":
            return
        row: dict[str, Any] = {"Step": record["step"], "Training Loss": self._loss}
        for name, value in evaluated.items():
            if not name.endswith(COSTS):
                title = name.removeprefix("eval_").replace("_", " ").title()
                row["Validation Loss" if name == "eval_loss" else title] = value
        self._columns += [name for name in row if name not in self._columns]
        if self._rows and self._rows[-1]["Step"] == row["Step"]:  # of another data set
            row = {**self._rows.pop(), **row}
        self._rows.append(row)
        self._draw(state, self._label(state))

    def on_train_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Leave the bar and the table as they stand."""
        self._draw(state, self._label(state))
        self._display = None

    def _label(self, state: TrainerState) -> str:
        """Time, epoch, rate, and the most that a GPU's arrays have held."""
        elapsed = time.perf_counter() - self._began if self._began else 0.0
        done, tokens = state.global_step, state.num_input_tokens_seen - self._first_tokens
        left = f" < {_clock(elapsed / done * (state.max_steps - done))}" if done else ""
        parts = [_clock(elapsed) + left, f"Epoch {state.epoch:.2f}/{state.num_train_epochs}"]
        if tokens and elapsed:
            parts.append(f"{tokens / elapsed:,.0f} tokens/s")
        peak = peak_memory()
        if peak is not None:
            parts.append(f"{peak / GIB:.1f} GB")
        return ", ".join(parts)

    def _draw(self, state: TrainerState, label: str) -> None:
        """Show the bar and the table, in place of what was shown before."""
        from IPython.display import HTML, display

        done, total = state.global_step, state.max_steps
        html = (
            f"<div><progress value='{done}' max='{total}' style='width:300px; height:20px; "
            f"vertical-align: middle;'></progress> [{done}/{total} {label}]</div>"
        )
        rows = [[row.get(name, "No Log") for name in self._columns] for row in self._rows]
        html += table_html([self._columns, *rows])
        if self._display is None:
            self._display = display(HTML(html), display_id=True)
        else:
            self._display.update(HTML(html))
        self._drawn = time.perf_counter()


def table_html(rows: Sequence[Sequence[Any]]) -> str:
    """A table, the first row its head; numbers with six places, as in transformers."""
    head, *body = rows
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in body
    )
    return (
        '<table border="1" class="dataframe"><thead><tr style="text-align: left;">'
        f"{titles}</tr></thead><tbody>{lines}</tbody></table><p>"
    )


def _cell(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else escape(str(value))


def _clock(seconds: float) -> str:
    """Hours if there are any, minutes, seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
