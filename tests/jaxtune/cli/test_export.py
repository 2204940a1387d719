"""`jaxtune export`: the folders that the model's own methods write, without a GPU, or nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from convert import DequantizedCheckpoint, open_checkpoint, read_adapter
from jaxtune import FastLanguageModel, cli
from jaxtune.cli.export_options import READS, Export
from tests.fake_hub import FakeHub
from tests.jaxtune.cli.made import make_adapter, make_model
from tests.tolerances import relative_error, tolerance

ROOT = Path(__file__).parents[3]


def weights(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.names}


def values(folder: Path) -> dict[str, np.ndarray]:
    """Those of 4-bit weights."""
    with open_checkpoint(folder) as checkpoint:
        dense = DequantizedCheckpoint(checkpoint)
        return {name: dense.read(name) for name in dense.quantized}


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_peft(adapter, tmp_path, capsys):
    assert cli.main(["export", "peft", str(adapter), str(tmp_path / "out")]) == 0
    assert "peft.PeftModel.from_pretrained" in capsys.readouterr().out
    got, wanted = read_adapter(tmp_path / "out"), read_adapter(adapter)
    assert_same(dict(got.tensors), dict(wanted.tensors))


def test_merged_is_what_the_model_writes(adapter, tmp_path, capsys):
    assert cli.main(["export", "merged", str(adapter), str(tmp_path / "out")]) == 0
    assert "AutoModelForCausalLM.from_pretrained" in capsys.readouterr().out
    model, _ = FastLanguageModel.from_pretrained(
        str(adapter), max_seq_length=None, load_in_4bit=False
    )
    model.save_pretrained_merged(tmp_path / "python")
    assert_same(weights(tmp_path / "out"), weights(tmp_path / "python"))
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_merged_4bit_is_what_the_model_writes(adapter, tmp_path, capsys):
    """But for the mean of the scales, which JAX rounds by the way."""
    assert cli.main(["export", "merged-4bit", str(adapter), str(tmp_path / "out")]) == 0
    assert "with bitsandbytes installed" in capsys.readouterr().out
    model, _ = FastLanguageModel.from_pretrained(
        str(adapter), max_seq_length=None, load_in_4bit=False
    )
    model.save_pretrained_merged(tmp_path / "python", save_method="merged_4bit")
    got, wanted = weights(tmp_path / "out"), weights(tmp_path / "python")
    assert got.keys() == wanted.keys()
    rounded = [name for name in wanted if name.endswith("nested_absmax") or "quant_state" in name]
    assert_same(*({n: v for n, v in held.items() if n not in rounded} for held in (got, wanted)))
    got, wanted = values(tmp_path / "out"), values(tmp_path / "python")
    for name, value in wanted.items():
        assert relative_error(got[name], value) <= tolerance("float32", "absmax_mean"), name
    configs = [(tmp_path / name / "config.json").read_text() for name in ("out", "python")]
    assert configs[0] == configs[1]
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_gguf_methods_and_their_files(adapter, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "convert.exporters.write_gguf", lambda file, *_, method, **__: seen.append((file, method))
    )
    command = ["export", "gguf", str(adapter), str(tmp_path / "out")]
    assert cli.main([*command, "--method", "f16", "q8_0"]) == 0
    assert seen == [
        (tmp_path / "out" / "adapter.F16.gguf", "f16"),
        (tmp_path / "out" / "adapter.Q8_0.gguf", "q8_0"),
    ]


def test_a_base_of_the_hub_is_downloaded(hub: FakeHub, tmp_path):
    base = make_model(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    hub.add("owner/base", base)
    for place, options in (("here", str(base)), ("there", "owner/base")):
        command = ["export", "merged", str(adapter), str(tmp_path / place)]
        assert cli.main([*command, "--base", options]) == 0
    assert_same(weights(tmp_path / "there"), weights(tmp_path / "here"))


def refused(capsys, *arguments: object) -> str:
    assert cli.main(["export", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_bad_requests_leave_nothing(adapter, model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert "is none" in refused(capsys, "merged", tmp_path / "no", out)
    file = tmp_path / "file"
    file.write_text("")
    assert "can be written to" in refused(capsys, "peft", adapter, file / "out")
    assert "adapter_config.json" in refused(capsys, "peft", model, out)
    assert "llama-quantize" in refused(capsys, "gguf", adapter, out, "--method", "q4_k_m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refused(capsys, "merged", adapter, out, "--base", "owner/model")
    assert "hf download owner/model" in said
    assert "add --base FOLDER" in said
    other = make_model(tmp_path / "other")
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text)
    smaller = make_adapter(other, tmp_path / "fits")
    (smaller / "adapter_config.json").write_text(
        (smaller / "adapter_config.json").read_text().replace(str(other), "")
    )
    assert "Add --base FOLDER" in refused(capsys, "merged", smaller, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("target", "option", "value"),
    [("peft", "base", "b"), ("merged", "method", ("f16",)), ("gguf", "dtype", "float16")],
)
def test_options_that_a_target_does_not_read_are_refused(tmp_path, target, option, value):
    assert option not in READS[target]
    with pytest.raises(ValueError, match=f"--{option} goes with"):
        Export(target=target, source=tmp_path, out=tmp_path, **{option: value})


@pytest.mark.slow
def test_the_program_itself(adapter, tmp_path):
    command = [sys.executable, "-m", "jaxtune", "export", "merged", str(adapter)]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "out")
