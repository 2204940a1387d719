"""What the command line says; the one place that prints."""


def say(*lines: str) -> None:
    """Print lines at once, in order with what a progress bar writes.

    Args:
      lines: Without line ends; none prints an empty line.
    """
    print("\n".join(lines), flush=True)  # noqa: T201  This is what a program's printing goes through.
