"""The model that ships with the package: small, complete, and good at its tasks."""

import fnmatch
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from jaxtune import FastLanguageModel
from jaxtune.adapters.counting import count_parameters
from jaxtune.language_model import LanguageModel
from jaxtune.quickstart import tiny_model
from jaxtune.quickstart.asking import right_answers
from jaxtune.quickstart.tasks import LONGEST, NEW_TASK, TASKS, draw_words, prompt, solve, text
from jaxtune.quickstart.tiny_model import ROW, SHOWN, words
from tests.packaged import packaged_model_folder

ROOT = Path(__file__).parents[3]
FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return FastLanguageModel.from_pretrained(
        str(packaged_model_folder()), max_seq_length=ROW, dtype="float32", load_in_4bit=False
    )[0]


def test_its_files_are_in_the_package_and_in_the_wheel():
    held = {entry.name for entry in (resources.files("jaxtune.quickstart") / "model").iterdir()}
    assert held == FILES
    assert sum(file.stat().st_size for file in packaged_model_folder().iterdir()) <= 500_000
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = settings["package-data"]["jaxtune.quickstart"]
    names = [*(f"model/{name}" for name in FILES), "LOG.md"]
    assert [n for n in names if not any(fnmatch.fnmatch(n, p) for p in shipped)] == []


def test_it_has_at_most_250_thousand_parameters(model: LanguageModel):
    trainable, total = count_parameters(model)
    assert trainable == 0
    assert 150_000 < total <= 250_000


def test_it_solves_its_tasks(model: LanguageModel):
    drawn = draw_words(np.random.default_rng(2026), 20)
    questions = [(task, word) for task in TASKS for word in drawn]
    right = np.reshape(right_answers(model, questions), (len(TASKS), len(drawn)))
    share = dict(zip(TASKS, right.mean(axis=1), strict=True))
    assert len(share) >= 6
    assert {task: good for task, good in share.items() if good < 0.9} == {}


@pytest.mark.parity
def test_transformers_gives_its_logits(model: LanguageModel):
    folder = packaged_model_folder()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = tokenizer([text(task, "mistral") for task in ("copy", "upper", "sort")])["input_ids"]
    ids = np.asarray([row[:20] for row in rows], np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(np.asarray(model(ids)), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("string", ["upper: llama = LLAMA", "Is 3 < 4?\n\tYes.", "naïve ~{}", ""])
def test_its_tokenizer_has_one_token_a_character(string: str):
    tokenizer = transformers.AutoTokenizer.from_pretrained(packaged_model_folder())
    ids = tokenizer(string)["input_ids"]
    assert len(ids) == 1 + len(string)
    assert (ids[0], tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    known = "".join(letter if letter in "\n" or letter.isascii() else "<unk>" for letter in string)
    assert tokenizer.decode(ids[1:]) == known.replace("\t", "<unk>")


def test_the_new_task_is_made_of_old_ones_and_is_none_of_them():
    assert NEW_TASK not in TASKS
    assert set(NEW_TASK.split()) <= set(TASKS)
    assert solve(NEW_TASK, "llama") == "AMALL"
    assert text(NEW_TASK, "llama") == prompt(NEW_TASK, "llama") + " AMALL"


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("copy", "mozart"),
        ("reverse", "trazom"),
        ("upper", "MOZART"),
        ("double", "mmoozzaarrtt"),
        ("drop", "mzrt"),
        ("rotate", "ozartm"),
        ("next", "npabsu"),
        ("ends", "mt"),
        ("sort", "amortz"),
    ],
)
def test_each_task(task: str, answer: str):
    assert solve(task, "mozart") == answer


@pytest.mark.parametrize("seed", range(3))
def test_held_out_words_are_never_trained_on(seed: int):
    trained, held_out = words(seed)
    assert (len(set(trained)), len(set(held_out))) == (2000, 100)
    assert not set(trained) & {*held_out, *SHOWN}
    assert max(map(len, trained)) == LONGEST


def test_the_shown_words_are_taken_out_of_those_drawn(monkeypatch: pytest.MonkeyPatch):
    def drawn(_: np.random.Generator, count: int) -> list[str]:
        return [*SHOWN, *(f"word{number}" for number in range(count - len(SHOWN)))]

    monkeypatch.setattr(tiny_model, "draw_words", drawn)
    trained, held_out = words(0)
    assert (len(trained), len(held_out)) == (2000, 100)
    assert not {*trained, *held_out} & set(SHOWN)
