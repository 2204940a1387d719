"""What is wrong with a 4-bit checkpoint is said by name, and before weights where it can be."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file

pytest.importorskip("bitsandbytes")

from bitsandbytes.functional import quantize_4bit

from convert.errors import CheckpointError
from jaxtune import FastLanguageModel
from jaxtune.errors import IncompatibleCheckpointError
from tests.quantized_models import load, save_4bit, save_dense

WEIGHTS = "model.safetensors"
GATE = "model.layers.1.mlp.gate_proj.weight"
KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("errors") / "dense", layers=2)


@pytest.fixture(scope="module")
def small(dense: Path) -> Path:
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return save_4bit(dense, dense.parent / "small", dtype=torch.bfloat16, **options)


def changed(folder: Path, copy: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """A copy of a folder with other tensors in the place of some."""
    shutil.copytree(folder, copy)
    held = load_file(copy / WEIGHTS)
    assert tensors.keys() <= held.keys()
    save_file({**held, **tensors}, copy / WEIGHTS, {"format": "pt"})
    return copy


def with_state(small: Path, copy: Path, **values: Any) -> Path:
    """A copy in which the JSON of one weight says something else."""
    name = f"{KEY}.quant_state.bitsandbytes__nf4"
    state = json.loads(load_file(small / WEIGHTS)[name].numpy().tobytes())
    data = bytearray(json.dumps({**state, **values}).encode())
    return changed(small, copy, {name: torch.frombuffer(data, dtype=torch.uint8)})


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(dense: Path, tmp_path: Path, bad: float) -> None:
    weight = load_file(dense / WEIGHTS)[GATE].clone()
    weight[3, 5] = bad
    folder = changed(dense, tmp_path / "copy", {GATE: weight})
    message = rf"must be finite to be quantised; tensor `{GATE}` holds NaN or infinity"
    with pytest.raises(IncompatibleCheckpointError, match=message):
        load(folder)


def test_layers_quantised_in_different_ways_are_refused(small: Path, tmp_path: Path) -> None:
    weight = torch.randn(428, 40, dtype=torch.bfloat16)
    codes, state = quantize_4bit(weight, blocksize=128, compress_statistics=True, quant_type="nf4")
    parts = {f"{GATE}.{name}": part for name, part in state.as_dict(packed=True).items()}
    folder = changed(small, tmp_path / "copy", {GATE: codes, **parts})
    first = GATE.replace(".1.", ".0.")
    message = rf"must be quantised alike; `{GATE}` and `{first}` differ in block"
    with pytest.raises(IncompatibleCheckpointError, match=message):
        load(folder)
    assert load(folder, load_in_4bit=False).dtype == "float32"  # dense layers may differ


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ([40, 20], IncompatibleCheckpointError, r"must have shape \(20, 40\) .*has \(40, 20\)"),
        ([20, 41], CheckpointError, "must be as bitsandbytes saves it"),
    ],
)
def test_a_state_of_another_shape_is_refused_before_a_weight_is_read(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: list[int],
    error: type[Exception],
    message: str,
) -> None:
    folder = with_state(small, tmp_path / "copy", shape=shape)
    with pytest.raises(error, match=message) as raised:
        load(folder)
    assert KEY in str(raised.value)
    assert "loading weights" not in capsys.readouterr().err


def test_another_kind_of_quantisation_is_refused_by_its_config_alone(
    small: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "copy"))
    (folder / WEIGHTS).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"must be one that we can read.*gptq"):
        load(folder)


def test_a_4_bit_projection_is_not_trained_whole_and_the_model_stays_as_it_was(
    small: Path,
) -> None:
    model = load(small)
    before = nnx.split(model)
    with pytest.raises(ValueError, match=r"trains a dense weight; got .*gate_proj.*has 4 bits"):
        FastLanguageModel.get_peft_model(model, r=2, modules_to_save=["gate_proj"])
    after = nnx.split(model)
    assert after[0] == before[0]
    assert jax.tree.structure(after[1]) == jax.tree.structure(before[1])
    assert model.carried.adapter is None
    FastLanguageModel.get_peft_model(model, r=2, modules_to_save=["lm_head"])
