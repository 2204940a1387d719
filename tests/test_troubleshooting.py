"""What `docs/troubleshooting.md` names exists: options, functions, and the lines in quotes."""

import ast
import inspect
import re

import pytest

import jaxtune
from jaxtune import FastLanguageModel, SFTTrainer, UnslothTrainingArguments
from jaxtune.errors import NonFiniteLossError
from jaxtune.language_model import LanguageModel
from tests.named_tests import TESTS

ROOT = TESTS.parent
PAGE = " ".join((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split())
NAMES = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
LINES = sorted(set(re.findall(r'(?<![=("])"([^"`]+)"(?![`)])', re.sub(r"`[^`]*`", "", PAGE))))
# Neither options nor functions: programs, variables of JAX and the hub, and what a record holds.
OTHERS = {
    "False",
    "HF_HUB_OFFLINE=1",
    "JAX_COMPILATION_CACHE_DIR",
    "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9",
    "XLA_PYTHON_CLIENT_PREALLOCATE=false",
    "jaxtune bench",
    "jaxtune bench --model llama-3-8b --batch 2 --length 2048",
    "jaxtune quickstart",
    "loss_scale",
    "tests/test_troubleshooting.py",
    "~/.cache/jaxtune/xla",
}
TAKEN = (
    FastLanguageModel.from_pretrained,
    FastLanguageModel.get_peft_model,
    LanguageModel.generate,
    SFTTrainer,
    UnslothTrainingArguments,
    jaxtune.get_chat_template,
    jaxtune.train_on_responses_only,
    NonFiniteLossError,
)
OPTIONS = {name for taken in TAKEN for name in inspect.signature(taken).parameters}
FUNCTIONS = {*jaxtune.__all__, "from_pretrained", "generate"}


def texts() -> list[str]:
    """Every text that the library writes, "..." where a value stands in it."""
    found = []
    for package in ("jaxtune", "convert", "pallas_kernels"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (part for part in node.values)
                    found.append(
                        "".join(
                            getattr(part, "value", "...")
                            if isinstance(part, ast.Constant)
                            else "..."
                            for part in parts
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return [" ".join(text.split()) for text in found]


TEXTS = texts()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERS])
def test_a_name_exists(name: str) -> None:
    word = re.match(r"\w+", name)
    assert word, name
    called = re.fullmatch(r"\w+=(\w+)\(.*\)", name)
    assert word[0] in OPTIONS | FUNCTIONS
    assert called is None or called[1] in FUNCTIONS


def test_the_others_are_named() -> None:
    assert set(NAMES) >= OTHERS


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_printed(line: str) -> None:
    pattern = ".*".join(re.escape(part.strip()) for part in line.split("..."))
    assert any(re.search(pattern, text) for text in TEXTS), pattern


def test_there_are_lines() -> None:
    assert len(LINES) >= 15
