"""`jaxtune quickstart --model --dataset`: the user's rows are read, held out, and reported on."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from jaxtune import FastLanguageModel, cli
from jaxtune.quickstart.own_model import hold_out, mean_loss, read_rows
from jaxtune.quickstart.tasks import text
from tests.packaged import packaged_model_folder
from tests.tolerances import relative_error, tolerance

WORDS = [f"{first}{second}{third}" for first in "abcd" for second in "eiou" for third in "xyz"]


def write_rows(file: Path, rows: list) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [{"text": text("reverse upper", word), "more": 1} for word in WORDS]
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_a_run_reports_losses_generations_and_peft(dataset: Path, tmp_path: Path, capsys):
    model = str(packaged_model_folder())
    arguments = ["--model", model, "--dataset", str(dataset), "--output", str(tmp_path / "lora")]
    assert cli.main(["quickstart", *arguments, "--steps", "4"]) == 0
    out = capsys.readouterr().out
    before, after = re.findall(r"loss of 4 held-out rows: ([\d.]+)", out)
    assert float(after) < float(before)
    assert f"Loss of 4 held-out rows: {before} before, {after} after." in out
    assert "trainable params:" in out
    assert len(re.findall(r"'reverse.*?\n +-> '", out)) == 6
    difference = re.search(r"between peft and jaxtune is (\S+) \(float32,", out)
    assert difference
    assert float(difference[1]) <= 1e-4
    assert {file.name for file in (tmp_path / "lora").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }


@pytest.mark.parity
def test_the_mean_loss_is_that_of_transformers():
    folder = packaged_model_folder()
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=None, dtype="float32", load_in_4bit=False
    )
    texts = ["double: llama = llllaammaa", "copy: a = a", "upper: " + "x" * 90, "no", "sort: ba"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    total, count = 0.0, 0
    for row in (ids[:40] for ids in tokenizer(texts)["input_ids"]):
        ids = torch.tensor([row])
        with torch.no_grad():
            total += float(theirs(ids, labels=ids).loss) * (len(row) - 1)
        count += len(row) - 1
    actual = mean_loss(model, tokenizer, texts, 40)
    assert relative_error(actual, total / count) <= tolerance("float32", "loss")


def test_a_tenth_is_held_out_and_at_most_a_hundred():
    rows = [{"text": str(number)} for number in range(2000)]
    for count, held in ((2, 1), (19, 1), (20, 2), (999, 99), (2000, 100)):
        trained, held_out = hold_out(rows[:count], seed=1)
        assert (len(trained), len(held_out)) == (count - held, held)
        every = [*trained, *held_out]
        assert sorted(every, key=lambda row: int(row["text"])) == rows[:count]
    assert hold_out(rows, seed=1)[1] != hold_out(rows, seed=2)[1]
    assert hold_out(rows, seed=1) == hold_out(rows, seed=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a"}\n{"text": }\n', "line 2: Expecting value"),
        ('{"text": "a"}\n\n["b"]\n', "line 3 has list"),
        ('{"text": "a"}\n{"content": "b", "id": 1}\n', "line 2 has columns ['content', 'id']"),
        ('{"text": 3}\n', "line 1 has columns ['text']"),
        ('{"text": "a"}\n\n{"text": " "}\n', "at least two rows of text"),
        ("", "at least two rows"),
    ],
)
def test_bad_rows_are_named_by_line_before_anything_is_loaded(tmp_path, capsys, content, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    status = cli.main(["quickstart", "--model", str(tmp_path / "no"), "--dataset", str(file)])
    assert status == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys):
    status = cli.main(["quickstart", "--model", "x", "--dataset", str(tmp_path / "none.jsonl")])
    assert status == 2
    assert f"{tmp_path / 'none.jsonl'} is none" in capsys.readouterr().err


def test_a_folder_that_is_no_model_ends_with_status_2(dataset: Path, tmp_path: Path, capsys):
    arguments = ["--model", str(tmp_path), "--dataset", str(dataset)]
    assert cli.main(["quickstart", *arguments, "--output", str(tmp_path / "lora")]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()


def test_unicode_line_ends_inside_a_text_do_not_cut_it(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "a\u2028b"}, {"text": "c\x85d"}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_rows(file) == rows
