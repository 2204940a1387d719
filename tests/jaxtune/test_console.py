"""What is printed fits the terminal it is printed to, and is left alone elsewhere."""

import io
import os
import pty
import struct
import sys
from collections.abc import Iterator
from typing import IO

import pytest

from jaxtune.console import columns, fitted, say

fcntl = pytest.importorskip("fcntl")
termios = pytest.importorskip("termios")
PROSE = "jaxtune: the rows of a step are re-split: one instead of two micro-batches"


@pytest.fixture
def terminal() -> Iterator[IO[str]]:
    """One of 40 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        yield stream
    os.close(ours)


def test_prose_is_broken_between_words_and_indented(terminal: IO[str]) -> None:
    assert columns(terminal) == 40
    lines = fitted(f"  {PROSE}", terminal).split("\n")
    assert len(lines) == 3
    assert all(len(line) <= 40 and line.startswith("  ") for line in lines)
    assert " ".join(line.strip() for line in lines) == PROSE


@pytest.mark.parametrize("line", [f"    {PROSE}", f"\033[32m{PROSE}\033[0m", "x" * 100, ""])
def test_commands_colours_and_long_words_stay_whole(terminal: IO[str], line: str) -> None:
    assert fitted(line, terminal) == line


def test_other_places_get_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert columns(io.StringIO()) is None
    say(PROSE, "", PROSE)
    assert capsys.readouterr().out == f"{PROSE}\n\n{PROSE}\n"


def test_say_asks_the_stream_it_prints_to(
    terminal: IO[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(terminal, "write", written.append, raising=False)
    say(PROSE)
    assert "".join(written).count("\n") == 3
