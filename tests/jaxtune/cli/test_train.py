"""`jaxtune train`: the run of the Python interface; what cannot work is said before the work."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from convert import read_adapter
from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer, cli
from jaxtune.cli import train
from jaxtune.cli.data_source import load_rows
from jaxtune.errors import NonFiniteLossError
from tests.fake_hub import FakeHub
from tests.jaxtune.cli.made import ROWS, make_rows

ROOT = Path(__file__).parents[3]
PLAIN = ["--no-load-in-4bit", "--learning-rate", "1e-2", "--disable-tqdm"]


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return dict(read_adapter(folder).tensors)


def assert_same(got: Path, wanted: Path) -> None:
    got_tensors, wanted_tensors = tensors(got), tensors(wanted)
    assert got_tensors.keys() == wanted_tensors.keys()
    for name, value in wanted_tensors.items():
        np.testing.assert_array_equal(got_tensors[name], value, err_msg=name)


def test_a_run_is_that_of_the_python_interface(model, tmp_path, capsys):
    rows = make_rows(tmp_path / "rows.jsonl")
    out = tmp_path / "out"
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {model}\ndataset: {rows}\nmax_steps: 9\nr: 4\nlora_alpha: 8\n")
    arguments = ["train", "--config", str(file), "--output-dir", str(out), *PLAIN]
    assert cli.main([*arguments, "--max-steps", "3"]) == 0
    said = capsys.readouterr().out
    assert f"The adapter is in {out}/." in said
    assert f"jaxtune chat {out}" in said
    assert "3 steps" in said
    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=None, load_in_4bit=False
    )
    loaded = FastLanguageModel.get_peft_model(loaded, r=4, lora_alpha=8)
    args = SFTConfig(max_steps=3, learning_rate=1e-2, disable_tqdm=True)
    SFTTrainer(loaded, args=args, train_dataset=ROWS, tokenizer=tokenizer).train()
    loaded.save_pretrained(tmp_path / "python")
    assert_same(out, tmp_path / "python")


@pytest.mark.slow
def test_a_resumed_run_ends_where_the_whole_one_does(model, tmp_path, capsys):
    rows = make_rows(tmp_path / "rows.jsonl")
    common = ["train", "--model", str(model), "--dataset", str(rows), *PLAIN]
    common += ["--max-steps", "4", "--save-steps", "2"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*common, "--output-dir", str(whole)]) == 0
    (cut / "checkpoint-2").parent.mkdir()
    (whole / "checkpoint-2").rename(cut / "checkpoint-2")
    resume = ["--resume-from-checkpoint", "last", "--no-disable-tqdm"]
    assert cli.main([*common, "--output-dir", str(cut), *resume]) == 0
    assert "is resumed at step 2" in capsys.readouterr().out
    assert_same(cut, whole)


@pytest.mark.slow
def test_chats_evaluation_4_bits_and_embeddings(model, tmp_path, capsys):
    chats = [
        {"messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]}
    ] * 12
    rows = make_rows(tmp_path / "rows.jsonl", chats)
    options = ["--eval-dataset", str(rows), "--eval-strategy", "epoch", "--assistant-only-loss"]
    options += ["--modules-to-save", "embed_tokens", "--embedding-learning-rate", "1e-3"]
    arguments = ["train", "--model", str(model), "--dataset", str(rows), *options]
    assert cli.main([*arguments, "--max-steps", "2", "--output-dir", str(tmp_path / "out")]) == 0
    assert "eval_loss" in capsys.readouterr().out
    assert any("embed_tokens" in name for name in tensors(tmp_path / "out"))


@pytest.mark.slow
def test_the_program_itself(model, tmp_path):
    rows = make_rows(tmp_path / "rows.jsonl")
    command = [sys.executable, "-m", "jaxtune", "train", "--model", str(model)]
    command += ["--dataset", str(rows), "--max-steps", "2", "--no-load-in-4bit"]
    done = subprocess.run(
        [*command, "--output-dir", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Running on ")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@pytest.fixture
def request_(model, tmp_path):
    """A request that would be served, as a dict of options."""
    rows = make_rows(tmp_path / "rows.jsonl")
    return {"model": str(model), "dataset": str(rows), "output-dir": str(tmp_path / "out")}


def refused(capsys, request_: dict[str, str]) -> str:
    words = [word for name, value in request_.items() for word in (f"--{name}", value)]
    assert cli.main(["train", *words, *PLAIN]) == 2
    return capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(capsys, request_, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(FastLanguageModel, "from_pretrained", never)
    request_["output-dir"] = request_["dataset"] + "/out"
    assert "--output-dir must be a folder that can be written to" in refused(capsys, request_)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("no.jsonl", None, "there is nothing at"),
        ("no", None, None),  # could be a hub id
        ("rows.xyz", "a", "ending in .jsonl"),
        ("rows.jsonl", "", "is empty"),
        ("rows.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is no JSON"),
        ("rows.jsonl", '{"text": "a"}\n[1]\n', "line 2 is a list"),
        ("rows.jsonl", '{"note": "w1 w2"}\n', "note"),
        ("rows.parquet", "nonsense", "must be readable as parquet"),
    ],
)
def test_rows_that_cannot_be_read(capsys, request_, tmp_path, monkeypatch, name, text, said):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    request_["dataset"] = str(file) if said else name
    if said is None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        said = "names no file here"
    assert said in refused(capsys, request_)


def test_a_model_that_the_hub_cannot_give(capsys, request_, hub: FakeHub, monkeypatch):
    assert hub is not None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    request_["model"] = "owner/model"
    said = refused(capsys, request_)
    assert "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set" in said
    assert "hf download owner/model" in said


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("resume-from-checkpoint", "last", "needs a folder checkpoint-N"),
        ("resume-from-checkpoint", "/no/such", "must be a folder"),
        ("target-modules", "no_proj", "no_proj"),
        ("report-to", "no-such", "`report_to` must be"),
        ("devices", "64", "--devices must be at most"),
        ("dtype", "int8", "`dtype` must be"),
        ("chat-template", "nonsense", "`chat_template` must be one of"),
    ],
)
def test_options_that_do_not_serve(capsys, request_, option, value, said):
    assert said in refused(capsys, {**request_, option: value})


@pytest.mark.parametrize("option", ["optim", "lr-scheduler-type"])
def test_wrong_names_are_told_before_a_model_is_loaded(capsys, request_, monkeypatch, option):
    monkeypatch.setattr(train, "_model", lambda _: pytest.fail("a model was loaded"))
    words = [word for name, value in request_.items() for word in (f"--{name}", value)]
    assert cli.main(["train", *words, f"--{option}", "nonsense"]) == cli.WRONG_REQUEST
    assert f"`{option.replace('-', '_')}` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (NonFiniteLossError("NaN at step 3", step=3, batch=None), 1, "jaxtune: NaN at step 3"),
        (KeyboardInterrupt(), cli.INTERRUPTED, "--resume-from-checkpoint last"),
    ],
)
def test_how_a_run_ends_early(capsys, request_, monkeypatch, error, status, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(train, "_train", fail)
    words = [word for name, value in request_.items() for word in (f"--{name}", value)]
    assert cli.main(["train", *words]) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet", ".txt", "", "saved"])
def test_every_kind_of_file_gives_the_rows(tmp_path, ending):
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    file = tmp_path / f"rows{ending}"
    writers = {".json": table.to_json, ".csv": table.to_csv, ".parquet": table.to_parquet}
    if ending in writers:
        writers[ending](str(file))
    elif ending == ".txt":
        file.write_text("\n".join(row["text"] for row in ROWS))
    elif ending == "saved":
        table.save_to_disk(str(file))
    elif ending == "":
        file.mkdir()
        make_rows(file / "a.jsonl", ROWS[:10])
        make_rows(file / "b.jsonl", ROWS[10:])
    else:
        make_rows(file)
    assert load_rows(str(file), "train", option="--dataset")["text"][:] == [
        row["text"] for row in ROWS
    ]
