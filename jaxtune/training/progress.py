"""What a person sees of a run: a bar with loss, tokens a second and time left."""

import sys
import time

from tqdm.auto import tqdm


def evaluation_bar(rows: int, *, disable: bool) -> tqdm:
    """A bar over the rows of an evaluation, gone when it is closed."""
    return tqdm(total=rows, desc="evaluating", unit="row", leave=False, disable=disable)


class Progress:
    """A progress bar over optimizer steps; tqdm shows rate and time left.

    The first step compiles: its time is left out of the rate of tokens.
    """

    def __init__(self, total_steps: int, *, done: int = 0, disable: bool) -> None:
        """Show a bar with the steps that were done before."""
        self.bar = tqdm(
            total=total_steps, initial=done, desc="training", unit="step", disable=disable
        )
        self.bar.set_postfix_str("compiling the first step")
        self.tokens = 0
        self.started: float | None = None

    def step(self, tokens: int) -> None:
        """Count one step of `tokens` tokens."""
        if self.started is None:
            self.started = time.perf_counter()
        else:
            self.tokens += tokens
        self.bar.update()

    def show(self, loss: float) -> None:
        """Show the last known loss and the rate."""
        elapsed = time.perf_counter() - (self.started or time.perf_counter())
        rate = f", {self.tokens / elapsed:,.0f} tokens/s" if self.tokens and elapsed else ""
        self.bar.set_postfix_str(f"loss {loss:.4f}{rate}", refresh=False)  # `step` draws it

    @property
    def colour(self) -> bool:
        """True where lines go to a terminal, which shows colours."""
        return not self.bar.disable and sys.stdout.isatty()

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        if not self.bar.disable:
            self.bar.write(line)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
