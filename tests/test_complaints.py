"""`complaints.md` has a row for every theme, and names tests that exist."""

import re
from pathlib import Path

import pytest

from tests.named_tests import TESTS, exists, rows_of

THEMES = 27
# Answered in part, or not; a row says "open" if and only if it is here.
OPEN = {27}
ROWS = rows_of(TESTS / "complaints.md")


def test_every_theme_has_a_row() -> None:
    assert [row[0] for row in ROWS] == [str(number) for number in range(1, THEMES + 1)]


def test_the_themes_are_those_that_were_collected(assets: Path) -> None:
    file = assets.parent / "reference" / "finetuning_behaviour.md"
    if not file.is_file():
        pytest.skip(f"no {file}")
    section = re.search(r"^## 5\..*?(?=^## 6\.)", file.read_text(encoding="utf-8"), re.M | re.S)
    assert section
    assert len(re.findall(r"^\d+\. ", section[0], re.M)) == THEMES


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_is_whole_and_its_tests_exist(row: list[str]) -> None:
    number, theme, elsewhere, here, tests = row
    assert all((theme, elsewhere, here))
    named = re.findall(r"`([^`]+)`", tests)
    assert named or int(number) in OPEN
    assert [name for name in named if not exists(name)] == []


def test_what_is_open_is_said() -> None:
    assert {int(row[0]) for row in ROWS if "**open**" in row[3]} == OPEN
