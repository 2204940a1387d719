"""What the library says to a person beside a run's own log."""

from tqdm.auto import tqdm

from jaxtune import processes


def tell(line: str) -> None:
    """Print a line above any bar; of several processes the first alone does.

    Args:
      line: Without its end.
    """
    if processes.is_first():
        tqdm.write(line)
