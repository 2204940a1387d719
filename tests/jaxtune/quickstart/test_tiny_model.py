"""`jaxtune quickstart` from one end to the other, as a newcomer runs it."""

import re
from pathlib import Path

import peft
import pytest
import torch
import transformers

from convert import read_adapter
from jaxtune import cli
from jaxtune.quickstart import peft_check
from jaxtune.quickstart.tasks import NEW_TASK, prompt, solve
from jaxtune.quickstart.tiny_model import words
from tests.packaged import packaged_model_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "adapter"


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    """What a run at one seed prints."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        for module in ("run", "tiny_model", "peft_check"):
            patch.setattr(f"jaxtune.quickstart.{module}.say", lambda *more: lines.extend(more))
        assert cli.main(["quickstart", "--output", str(folder), "--steps", "80"]) == 0
    return "\n".join(lines)


def test_the_first_line_says_where_it_runs(said: str):
    assert said.startswith("Running on ")


def test_it_learns(said: str):
    before, after = map(int, re.findall(r"(\d+) of 100 held-out words are answered right", said))
    assert before < 10
    assert after >= 80
    assert f"Right answers on held-out words: {before} before, {after} after, of 100." in said


def test_it_shows_generations_before_and_after(said: str):
    assert said.count(prompt(NEW_TASK, "llama")) == 2
    first, second = re.findall(rf"{prompt(NEW_TASK, 'llama')} (\w+) +(.*)", said)
    assert first[1] == "should be AMALL"
    assert second == ("AMALL", "right")


def test_the_difference_to_peft_is_printed_and_small(said: str):
    difference = re.search(r"between peft and jaxtune is (\S+) \(float32,", said)
    assert difference
    assert 0 < float(difference[1]) <= 1e-4


def test_the_printed_lines_load_the_adapter_and_it_answers_right(said: str, folder: Path):
    lines = [line[4:] for line in said.splitlines() if line.startswith("    ")]
    program = "\n".join(lines)
    assert str(folder) in program
    scope: dict = {}
    exec(program, scope)  # noqa: S102  what the newcomer would paste
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    _, held_out = words(0)
    word = held_out[0]
    ids = tokenizer(prompt(NEW_TASK, word), return_tensors="pt")
    with torch.no_grad():
        out = scope["model"].generate(**ids, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == solve(NEW_TASK, word)


@pytest.mark.usefixtures("said")
def test_the_adapter_is_lora_of_rank_16(folder: Path):
    adapter = read_adapter(folder)
    assert (adapter.config.r, adapter.config.lora_alpha) == (16, 32)
    assert adapter.config.base_model_name_or_path == str(packaged_model_folder())
    assert isinstance(peft.PeftConfig.from_pretrained(folder), peft.LoraConfig)


def test_a_run_that_does_not_learn_says_so_and_ends_with_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peft_check, "LARGEST", 1)
    assert cli.main(["quickstart", "--output", str(tmp_path / "a"), "--steps", "1"]) == 1
    out = capsys.readouterr().out
    assert "That is fewer than 80: after 1 steps the model has not learnt the task." in out
    assert "Not compared with peft" in out
