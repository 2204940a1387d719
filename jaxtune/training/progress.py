"""What a person sees of a run: a bar with loss, tokens a second, time left and memory."""

import sys
import time

from tqdm.auto import tqdm

from jaxtune import processes
from jaxtune.console import say_above_bars
from jaxtune.memory import GIB, peak_memory

# tqdm's own without what its words repeat, so that loss, tokens a second and memory fit 80 columns.
BAR = "step {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}, {rate_fmt}{postfix}"
# Seconds between two drawings: on a terminal, and in the file of a batch job.
INTERVAL, LOG_INTERVAL = 0.1, 10.0


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook: Jupyter, Colab, Kaggle, an editor's."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def evaluation_bar(rows: int, *, disable: bool) -> tqdm:
    """A bar over the rows of an evaluation, gone when it is closed."""
    silent = disable or not processes.is_first()
    return tqdm(total=rows, desc="evaluating", unit="row", leave=False, disable=silent)


class Progress:
    """A progress bar over optimizer steps; tqdm shows rate and time left.

    The first step compiles: its time is left out of the rate of tokens. In a notebook there is no
    bar, since `notebook_table` draws one.
    """

    def __init__(self, total_steps: int, *, done: int = 0, disable: bool) -> None:
        """Show nothing yet; `disable` silences lines too, as do all processes but the first."""
        self.silent = disable or not processes.is_first()
        self.total, self.done = total_steps, done
        self.bar: tqdm | None = None
        self.tokens = 0
        self.started: float | None = None

    def begin(self) -> None:
        """Show the bar, with the steps that were done before: what is to be said first, is said."""
        self.bar = tqdm(
            total=self.total,
            initial=self.done,
            desc="training",
            unit="step",
            disable=self.silent or in_notebook(),
            postfix="compiling the first step",
            bar_format=BAR,
            dynamic_ncols=True,
            mininterval=INTERVAL if sys.stderr.isatty() else LOG_INTERVAL,
        )

    def step(self, tokens: int) -> None:
        """Count one step of `tokens` tokens."""
        if self.started is None:
            self.started = time.perf_counter()
        else:
            self.tokens += tokens
        if self.bar is not None:
            self.bar.update()

    def show(self, loss: float) -> None:
        """Show the last known loss, the rate, and the most that a GPU's arrays have held."""
        if self.bar is None:
            return
        parts = [f"loss {loss:.4f}"]
        elapsed = time.perf_counter() - (self.started or time.perf_counter())
        if self.tokens and elapsed:
            parts.append(f"{self.tokens / elapsed:,.0f} tokens/s")
        peak = peak_memory()
        if peak is not None:
            parts.append(f"{peak / GIB:.1f} GB")
        self.bar.set_postfix_str(", ".join(parts), refresh=False)  # `step` draws it

    @property
    def colour(self) -> bool:
        """True where lines go to a terminal or a notebook, which show colours."""
        return not self.silent and (sys.stdout.isatty() or in_notebook())

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.silent:
            say_above_bars(line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
