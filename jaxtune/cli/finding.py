"""One thing that `jaxtune doctor` found."""

import dataclasses
import textwrap
from typing import Literal

WIDTH = 98
MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}
_INDENT = " " * 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What is, and what to do about it.

    Attributes:
      state: "ok"; "note": works, and could be better; "broken": something will fail.
      text: What was found.
      cure: What to do; "" if there is nothing to do.
    """

    state: Literal["ok", "note", "broken"]
    text: str
    cure: str = ""

    def lines(self, columns: int | None = None) -> list[str]:
        """The lines that are printed; `columns`: of the terminal, if there is one."""
        width = WIDTH if columns is None else min(WIDTH, columns)
        mark = f"{MARKS[self.state]:<8}"
        found = textwrap.wrap(self.text, width, initial_indent=mark, subsequent_indent=_INDENT)
        if self.cure:
            # Commands are copied from here: no line of one may be broken.
            found.append(f"{_INDENT}-> {self.cure}")
        return found


def ok(text: str) -> Finding:
    """What is well."""
    return Finding(state="ok", text=text)


def note(text: str, cure: str = "") -> Finding:
    """What works, and could be better."""
    return Finding(state="note", text=text, cure=cure)


def broken(text: str, cure: str) -> Finding:
    """What will fail."""
    return Finding(state="broken", text=text, cure=cure)
