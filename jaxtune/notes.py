"""What the library says to a person beside a run's own log."""

from jaxtune import processes
from jaxtune.console import say_above_bars


def tell(line: str) -> None:
    """Print a line above any bar; of several processes the first alone does.

    Args:
      line: Without its end.
    """
    if processes.is_first():
        say_above_bars(line)
