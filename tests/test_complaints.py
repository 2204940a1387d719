"""`complaints.md` has a row for every theme, and names tests that exist."""

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
THEMES = 27
# Answered in part, or not; a row says "open" if and only if it is here.
OPEN = {12, 17, 27}


def table() -> dict[int, list[str]]:
    """The cells behind each number."""
    found: dict[int, list[str]] = {}
    for line in (TESTS / "complaints.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[0].isdigit():
            assert int(cells[0]) not in found, line
            found[int(cells[0])] = cells[1:]
    return found


@functools.cache
def names_of(file: Path) -> frozenset[str]:
    """The tests that a file holds."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


ROWS = table()


def test_every_theme_has_a_row() -> None:
    assert list(ROWS) == list(range(1, THEMES + 1))


def test_the_themes_are_those_that_were_collected(assets: Path) -> None:
    file = assets.parent / "reference" / "finetuning_behaviour.md"
    if not file.is_file():
        pytest.skip(f"no {file}")
    section = re.search(r"^## 5\..*?(?=^## 6\.)", file.read_text(encoding="utf-8"), re.M | re.S)
    assert section
    assert len(re.findall(r"^\d+\. ", section[0], re.M)) == THEMES


@pytest.mark.parametrize("number", ROWS)
def test_a_row_is_whole_and_its_tests_exist(number: int) -> None:
    theme, elsewhere, here, tests = ROWS[number]
    assert theme
    assert elsewhere
    assert here
    named = tests.split()
    assert named or number in OPEN
    for name in named:
        file, test = re.fullmatch(r"`([\w/]+\.py)::(test_\w+)`", name).groups()
        assert test in names_of(TESTS / file), name


def test_what_is_open_is_said() -> None:
    assert {number for number, cells in ROWS.items() if "**open**" in cells[2]} == OPEN
