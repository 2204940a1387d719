"""`jaxtune bench --notebook`: random files of any model, and two starts over them."""

import json
import re

import numpy as np
import pytest

from convert import open_checkpoint, quantized_infos
from jaxtune import FastLanguageModel, cli
from jaxtune.bench import notebook
from jaxtune.bench.notebook import notebook_lines
from jaxtune.bench.notebook_process import LABELS, PROMPT, rows_of
from jaxtune.bench.random_files import STD, Draws, write_random_files
from jaxtune.bench.subject import find_subject, read_config
from pallas_kernels import NF4
from tests.jaxtune.bench.tiny import TINY
from tests.words import word_tokenizer

ROWS = [{"instruction": f"w{n} w{2 * n}", "input": "w3", "output": f"w{n + 1}"} for n in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration, a tokenizer and a file of rows."""
    made = tmp_path_factory.mktemp("notebook")
    sizes = {**TINY, "hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False}
    (made / "config.json").write_text(json.dumps({**sizes, "max_position_embeddings": 128}))
    word_tokenizer().save_pretrained(made / "tokenizer")
    (made / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return made


def write(folder, target, bits):
    name = str(folder)
    subject, config = find_subject(name), read_config(name)
    write_random_files(target, subject, config, folder / "tokenizer", bits=bits)


@pytest.mark.parametrize("bits", [4, 16])
def test_random_files_load_and_have_the_wanted_bits(folder, tmp_path, bits):
    write(folder, tmp_path / "model", bits)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        infos = quantized_infos(checkpoint)
        assert len(infos) == (2 * 7 if bits == 4 else 0)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(tmp_path / "model"), max_seq_length=64, load_in_4bit=bits == 4, dtype="bfloat16"
    )
    assert len(tokenizer) == 97
    weight = model.model.layers.mlp.gate_proj.weight.get_value()
    assert isinstance(weight, NF4) == (bits == 4)
    norms = np.asarray(model.model.norm.weight.get_value(), np.float32)
    np.testing.assert_array_equal(norms, 1)
    logits = np.asarray(model(np.array([[3, 5, 7]])))
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_draws_differ_and_are_of_any_size():
    draws = Draws(0)
    one, two = draws.normal((3, 5)), draws.normal((3, 5))
    assert not np.array_equal(one, two)
    many = draws.normal((5, 2**20)).astype(np.float32)
    assert many.std() == pytest.approx(STD, rel=0.01)
    assert draws.codes(2**23).size == 2**23


def test_rows_are_alpacas_prompt_or_their_text(folder, tmp_path):
    texts = [row["text"] for row in rows_of(str(folder / "rows.jsonl"), "</s>")]
    assert texts[2] == PROMPT.format("w2 w4", "w3", "w3") + "</s>"
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"text": "w1"}))
    assert rows_of(str(plain), "</s>") == [{"text": "w1</s>"}]
    plain.write_text(json.dumps({"words": "w1"}))
    with pytest.raises(ValueError, match=r"column `text`.*has words"):
        rows_of(str(plain), "</s>")


@pytest.fixture(scope="module")
def measured(folder):
    """Both starts, from no files: the status and the record."""
    output = folder / "out.json"
    status = cli.main(
        [
            *("bench", "--notebook", "--model", str(folder), "--weights", str(folder / "made")),
            *("--dataset", str(folder / "rows.jsonl"), "--tokenizer", str(folder / "tokenizer")),
            *("--length", "64", "--rank", "2", "--output", str(output)),
        ]
    )
    return status, json.loads(output.read_text())


@pytest.mark.slow
def test_each_phase_of_both_starts_is_timed(measured):
    status, record = measured
    assert status == 0
    assert set(record["starts"]) == {"cold", "warm"}
    for start in record["starts"].values():
        assert set(start["seconds"]) == set(LABELS)
        assert min(start["seconds"].values()) > 0
        assert start["total_seconds"] == pytest.approx(sum(start["seconds"].values()))
        assert start["step_ms"] == pytest.approx(1e3 * start["seconds"]["training"] / 59)
        assert start["steps"] == len(start["losses"]) == 60
        assert start["compiled_after_first_step"] == 0
        assert start["peak_bytes"] > 0
    cold, warm = record["starts"].values()
    assert cold["losses"] == warm["losses"]


@pytest.mark.slow
def test_what_is_printed_of_the_starts(measured):
    _, record = measured
    text = "\n".join(notebook_lines(record))
    for label in LABELS.values():
        assert re.search(rf"^{label} +[\d.]+ s +[\d.]+ s$", text, re.MULTILINE), label
    cold, warm = record["starts"].values()
    total = f"{cold['total_seconds']:.1f} s +{warm['total_seconds']:.1f} s"
    assert re.search(rf"^process start to adapter +{total}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": None}, "--notebook needs --weights FOLDER"),
        ({"dataset": None}, "--dataset FILE"),
        ({"dataset": "nothing.jsonl"}, "there is none at nothing.jsonl"),
        ({"tokenizer": None}, "has no config.json. Pass --tokenizer FOLDER"),
    ],
)
def test_files_that_are_missing_are_named_before_a_start(
    folder, monkeypatch, capsys, changed, said
):
    monkeypatch.setattr(notebook, "_start", lambda *_: pytest.fail("a start was made"))
    given = {
        "weights": str(folder / "none"),
        "dataset": str(folder / "rows.jsonl"),
        "tokenizer": str(folder / "tokenizer"),
        **changed,
    }
    arguments = [word for key, value in given.items() if value for word in (f"--{key}", value)]
    model = ["--model", str(folder), "--length", "64"]
    assert cli.main(["bench", "--notebook", *model, *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_start_that_fails_says_what_it_said(folder, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    arguments = ["--model", str(folder), "--length", "64", "--weights", str(tmp_path / "model")]
    arguments += ["--dataset", str(folder / "rows.jsonl")]
    assert cli.main(["bench", "--notebook", *arguments]) == 2
    assert "a start of the notebook must end well" in capsys.readouterr().err
