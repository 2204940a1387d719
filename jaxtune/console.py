"""What the command line and a run say: printed in one place, and fitted to the terminal."""

import os
import sys
import textwrap
from typing import Any

from tqdm.auto import tqdm

CODE = " " * 4  # begins a line that people copy: a command or code, of which none may be broken
NARROWEST = 20


def say(*lines: str) -> None:
    """Print lines at once, in order with what a progress bar writes.

    Args:
      lines: Without line ends; none prints an empty line. See `fitted`.
    """
    text = "\n".join(fitted(line, sys.stdout) for line in lines)
    print(text, flush=True)  # noqa: T201  This is what a program's printing goes through.


def say_above_bars(*lines: str) -> None:
    """Print lines above the progress bars that stand on the terminal.

    Args:
      lines: As in `say`.
    """
    for line in lines:
        tqdm.write(fitted(line, sys.stdout))


def columns(stream: Any) -> int | None:
    """The width of a terminal, in characters.

    Args:
      stream: What is printed to.

    Returns:
      None where it is no terminal: a file, a pipe, a notebook.
    """
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # no terminal; no file at all
        return None
    return found if found >= NARROWEST else None


def fitted(text: str, stream: Any) -> str:
    """Break lines between words where the terminal would break them anywhere.

    Args:
      text: Lines; those that begin with `CODE`, and those with colours, stay whole. What follows a
        break is indented like the line.
      stream: What it is printed to; where that is no terminal, all stays as it is.

    Returns:
      The same words.
    """
    width = columns(stream)
    if width is None:
        return text
    return "\n".join(_fitted(line, width) for line in text.split("\n"))


def _fitted(line: str, width: int) -> str:
    """One line."""
    if len(line) <= width or line.startswith(CODE) or "\033" in line:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    broken = textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        expand_tabs=False,
    )
    return "\n".join(broken)
