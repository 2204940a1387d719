import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch

from convert.__main__ import main
from convert.exporters import EXPORTERS
from convert.peft import CONFIG_FILE, read_adapter
from tests.convert.conftest import load, logits, names_in, train

ROOT = Path(__file__).parents[2]


def run(*arguments, **options):
    """The program in a process of its own, as a user starts it."""
    command = [sys.executable, "-m", "convert", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, bases):
    return train(bases["llama"], tmp_path_factory.mktemp("lora"))


def copy_with_base(trained, folder, name):
    """A copy of the adapter that names another base model."""
    shutil.copytree(trained.adapter, folder / "lora")
    values = json.loads((folder / "lora" / CONFIG_FILE).read_text())
    values["base_model_name_or_path"] = name
    (folder / "lora" / CONFIG_FILE).write_text(json.dumps(values))
    return folder / "lora"


@pytest.mark.parity
def test_peft_writes_an_adapter_that_peft_loads(tmp_path, trained):
    source = tmp_path / "source"
    shutil.copytree(trained.adapter, source)
    (source / "tokenizer.json").write_text("words")
    done = run("peft", source, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert f"peft.PeftModel.from_pretrained(base_model, '{tmp_path / 'out'}')" in done.stdout
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "words"
    assert len(json.loads((tmp_path / "out" / CONFIG_FILE).read_text())) == 18
    model = peft.PeftModel.from_pretrained(load(trained.base), tmp_path / "out").eval()
    assert torch.equal(logits(model), trained.logits)


@pytest.mark.parity
def test_merged_writes_a_model_that_transformers_loads(tmp_path, trained):
    out, lora = tmp_path / "out", copy_with_base(trained, tmp_path, "meta-llama/Llama-3.2-1B")
    done = run("merged", lora, out, "--base", trained.base, "--dtype", "float32")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"Wrote {out}: \d+ tensors, [\d.]+ MB, float32\. Load it with .*\n", done.stdout
    )
    torch.testing.assert_close(logits(load(out)), trained.logits, rtol=1e-5, atol=1e-5)


def test_the_base_is_the_folder_that_the_adapter_names(tmp_path, trained, capsys):
    assert main(["merged", str(trained.adapter), str(tmp_path / "out")]) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert (tmp_path / "out" / "config.json").is_file()


def test_peft_may_rewrite_a_folder_in_place(tmp_path, trained):
    shutil.copytree(trained.adapter, tmp_path / "lora")
    (tmp_path / "lora" / "tokenizer.json").write_text("words")
    before = read_adapter(tmp_path / "lora")
    assert main(["peft", str(tmp_path / "lora"), str(tmp_path / "lora")]) == 0
    assert read_adapter(tmp_path / "lora").config == before.config
    assert (tmp_path / "lora" / "tokenizer.json").read_text() == "words"


@pytest.mark.parametrize("target", EXPORTERS)
def test_an_error_is_one_message_and_status_2(tmp_path, target):
    (tmp_path / "lora").mkdir()
    done = run(target, tmp_path / "lora", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: An adapter must be a folder")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", None])
def test_a_base_that_is_no_local_folder_is_asked_for(tmp_path, trained, capsys, name):
    lora = copy_with_base(trained, tmp_path, name)
    assert main(["merged", str(lora), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"got base_model_name_or_path {name!r}" in said
    assert "--base FOLDER" in said


def test_a_failing_disk_is_an_error_without_traceback(tmp_path, trained, capsys, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert main(["peft", str(trained.adapter), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device\n"
    assert names_in(tmp_path / "out") == []


def test_ctrl_c_says_what_became_of_the_folder(tmp_path, trained, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("convert.writer.write_lazy_safetensors", interrupt)
    assert main(["merged", str(trained.adapter), str(tmp_path / "out")]) == 130
    assert "is as it was before" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_on_a_terminal_only(tmp_path, trained, capsys, monkeypatch):
    arguments = ["merged", str(trained.adapter), str(tmp_path / "out")]
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(arguments) == 0
    lines = capsys.readouterr().err.rstrip().split("\r")
    assert all(re.fullmatch(r"\d+ MB written, \d+ MB/s, \d+ % *", line) for line in lines[1:])
    assert lines[-1].split()[-2:] == ["100", "%"]
    assert len(lines) > 10


def test_help_teaches_by_an_example_of_each_target():
    done = run("--help")
    assert done.returncode == 0
    for name, row in EXPORTERS.items():
        assert row.example in done.stdout
        assert row.example.startswith(f"python -m convert {name} ")
    assert "--base FOLDER" in run("merged", "--help").stdout


@pytest.mark.parametrize("name", EXPORTERS)
def test_the_example_of_a_target_is_a_command_that_it_takes(capsys, name):
    words = EXPORTERS[name].example.split()[3:]
    assert main(words) == 2  # the folders are not there, but the options are understood
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [[], ["onnx", "a", "b"], ["merged", "a", "b", "--dtype", "x"]]
)
def test_a_command_that_is_not_understood_is_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err
