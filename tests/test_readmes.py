"""The code of README files and pages runs as it stands; tiny models have the names in it."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from convert import EXPORTERS
from jaxtune import FastLanguageModel
from jaxtune.cli import COMMANDS
from tests.base_install import write_model
from tests.named_tests import TESTS

ROOT = TESTS.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("*/README.md")),
]
# A block with this word has a test of its own: jaxtune/test_functional.py.
ELSEWHERE = "make_train_step"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [block for block in found if ELSEWHERE not in block]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that code runs in, with what its names stand for."""
    for name in ("HuggingFaceTB/SmolLM2-135M", "Llama-3.2-1B"):
        (tmp_path / name).mkdir(parents=True)
        write_model(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def four_bit_copy(folder: Path) -> None:
    model, _ = FastLanguageModel.from_pretrained(str(folder / "Llama-3.2-1B"), max_seq_length=32)
    model.save_pretrained_merged(folder / "Llama-3.2-1B-bnb-4bit", save_method="merged_4bit")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_code_runs(page: Path, models: Path) -> None:
    """Blocks of a page are run one after the other, as a reader would."""
    text = "".join(blocks(page, "python"))
    if "bnb-4bit" in text:
        four_bit_copy(models)
    made: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), made)  # noqa: S102  it is what readers run
    if "model.save_pretrained" in text:
        assert (models / "lora" / "adapter_model.safetensors").is_file()


def test_no_page_is_left_out() -> None:
    folders = ("docs", "jaxtune", "pallas_kernels", "convert", "tests", "notebooks")
    found = [*ROOT.glob("*.md"), *(p for name in folders for p in (ROOT / name).rglob("*.md"))]
    with_code = {page for page in found if "```python" in page.read_text("utf-8")}
    assert with_code <= {*PAGES, TESTS / "complaints.md"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    lines = "".join(blocks(page, "sh")).splitlines()
    for words in (shlex.split(line, comments=True) for line in lines):
        if "jaxtune" in words[:1]:
            assert words[1].startswith("--") or words[1] in COMMANDS
        if words[:3] == ["python", "-m", "convert"]:
            assert words[3] in EXPORTERS
