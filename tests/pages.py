"""The code of published pages, read from the shared folder; none of it is kept here."""

import ast
import re
from collections.abc import Iterator, Mapping

# How a line of code begins; prose does so seldom, and then does not parse.
_BEGINS = re.compile(r"(from|import|class|def|#|\w+(, \w+)* ?=)( |\()")
_STATEMENTS = (ast.Import, ast.ImportFrom, ast.Assign, ast.FunctionDef, ast.ClassDef)
_HIGHLIGHT = re.compile(r"<syntaxhighlight[^>]*>\n(.*?)</syntaxhighlight>", re.DOTALL)
_MODULES = re.compile(r"^from (unsloth|trl|transformers) import", re.MULTILINE)


def blocks(page: str) -> list[str]:
    """The blocks of code of a page: those that are marked, else those that read as code."""
    marked = _HIGHLIGHT.findall(page)
    return marked or list(_found(page.splitlines()))


def _found(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        ends = range(len(lines), at, -1) if _BEGINS.match(lines[at]) else ()
        end = next((end for end in ends if _is_code("\n".join(lines[at:end]))), None)
        if end is not None:
            yield "\n".join(lines[at:end])
        at = at + 1 if end is None else end


def _is_code(text: str) -> bool:
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    return bool(body) and all(
        isinstance(node, _STATEMENTS)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
        for node in body
    )


def changed(block: str, names: Mapping[str, str], steps: int) -> str:
    """A block with our imports, other names of models and data sets, and few steps.

    Args:
      block: From `blocks`.
      names: What takes the place of each name.
      steps: In place of the run's.
    """
    block = re.sub(r"^import unsloth$", "import jaxtune", block, flags=re.MULTILINE)
    block = _MODULES.sub("from jaxtune import", block)
    for name, ours in names.items():
        block = block.replace(f'"{name}"', repr(ours))
    return re.sub(r"\bmax_steps ?= ?\d+", f"max_steps={steps}", block)
