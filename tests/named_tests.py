"""Tests by name, found in their source: for pages that name them."""

import ast
import functools
from pathlib import Path

TESTS = Path(__file__).parent


@functools.cache
def _names_of(file: Path) -> frozenset[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


def exists(name: str) -> bool:
    """Whether "folder/test_file.py::test_name", below this folder, is a test."""
    file, _, test = name.partition("::")
    path = TESTS / file
    return path.is_file() and test.startswith("test_") and test in _names_of(path)


def rows_of(page: Path) -> list[list[str]]:
    """The cells of every row of a page's tables, heads and rules left out."""
    lines = page.read_text(encoding="utf-8").splitlines()
    rules = {number for number, line in enumerate(lines) if line.startswith("|---")}
    heads = {number - 1 for number in rules}
    return [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for number, line in enumerate(lines)
        if line.startswith("|") and number not in rules | heads
    ]
