import json

import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from convert.adapter_config import AdapterConfig
from convert.errors import CheckpointError
from convert.peft import CONFIG_FILE, TENSORS_FILE, open_adapter, read_adapter, write_adapter
from tests.convert.conftest import FAMILIES, TARGETS, load, tiny_llama, train, wrap
from tests.convert.conftest import logits as logits_of

# peft 0.21 reads a property that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
IDS = torch.arange(12).reshape(2, 6)
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def config(**changes):
    values = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "base_model_name_or_path": None}
    return AdapterConfig(**(values | changes))


def pair(rank=3, dtype=np.float32):
    return {A: np.ones((rank, 16), dtype), B: np.ones((16, rank), dtype)}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def loaded(folder):
    """The tiny model with the adapter of `folder`, by plain peft."""
    return peft.PeftModel.from_pretrained(tiny_llama(), folder).eval()


@pytest.mark.parity
def test_reads_what_peft_saved(peft_folder):
    adapter = read_adapter(peft_folder)
    theirs = safetensors.torch.load_file(peft_folder / TENSORS_FILE)
    assert set(adapter.tensors) == set(theirs)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(adapter.tensors[name], tensor.numpy())
    assert (adapter.config.r, adapter.config.lora_alpha) == (3, 6)
    assert sorted(adapter.config.target_modules) == sorted(TARGETS)


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"0.mlp.down_proj": 20}},
        {"layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": r".*\.1\..*(q|up)_proj"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": "all-linear"},
    ],
    ids=["plain", "rslora", "patterns", "layers", "whole", "regex", "embedding", "all-linear"],
)
def test_what_we_write_gives_peft_the_same_logits(tmp_path, options):
    options = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS} | options
    model = wrap(tiny_llama(), peft.LoraConfig(**options, task_type="CAUSAL_LM"))
    # Given, since "auto" warns about the embedding that it saves whole.
    embedding = "embed_tokens" in options["target_modules"]
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=embedding)
    adapter = read_adapter(tmp_path / "theirs")
    write_adapter(tmp_path / "ours", adapter.tensors, adapter.config)
    wanted = logits(model)
    assert not torch.allclose(wanted, logits(tiny_llama()), atol=1e-2)
    assert torch.equal(logits(loaded(tmp_path / "ours")), wanted)


RICH = {
    "llama": {"bias": "all", "modules_to_save": ["lm_head", "embed_tokens"], "use_rslora": True},
    "mistral": {"target_modules": r".*layers\.1\..*_proj", "bias": "lora_only"},
    "gemma": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "gemma2": {
        "target_modules": "all-linear",
        "exclude_modules": ["model.layers.0.mlp.up_proj", "lm_head"],
        "rank_pattern": {"q_proj": 2},
    },
    "gemma3_text": {"layers_to_transform": 1, "layers_pattern": "layers", "exclude_modules": []},
    "gemma3": {
        "target_modules": "all-linear",
        "bias": "all",
        "modules_to_save": ["embed_tokens", "multi_modal_projector"],
        "ensure_weight_tying": True,
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_any_family_is_rewritten_as_it_was(tmp_path, bases, family):
    options = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS} | RICH[family]
    trained = train(bases[family], tmp_path / "theirs", **options)
    adapter = read_adapter(trained.adapter)
    write_adapter(tmp_path / "ours", adapter.tensors, adapter.config)
    ours, theirs = (
        safetensors.torch.load_file(tmp_path / w / TENSORS_FILE) for w in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor)
    again = peft.PeftModel.from_pretrained(load(bases[family]), tmp_path / "ours").eval()
    assert torch.equal(logits_of(again), trained.logits)


def test_excluded_modules_become_the_list_of_those_that_are_left(tmp_path):
    write_adapter(tmp_path, pair(), config())
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    values |= {"target_modules": r".*_proj", "exclude_modules": r".*v_proj"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert read_adapter(tmp_path).config == config(
        target_modules=[MODULE.removeprefix("base_model.model.")]
    )


def test_opening_reads_no_tensor(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a tensor was read")

    write_adapter(tmp_path, pair(), config())
    monkeypatch.setattr("safetensors.safe_open", fail)
    opened, tensors = open_adapter(tmp_path)
    assert opened == config()
    assert tensors.names == (A, B)


def test_a_parameter_of_a_whole_module_may_have_any_name(tmp_path):
    odd = {"base_model.model.model.projector.input_weight": np.ones((2, 2), np.float32)}
    with pytest.raises(CheckpointError, match="input_weight"):
        write_adapter(tmp_path, pair() | odd, config())
    write_adapter(tmp_path, pair() | odd, config(modules_to_save=["projector"]))
    assert set(read_adapter(tmp_path).tensors) == {A, B, *odd}


@pytest.mark.parity
def test_peft_finds_every_tensor_of_a_config_that_we_made(tmp_path, peft_folder):
    write_adapter(tmp_path, read_adapter(peft_folder).tensors, config())
    assert torch.equal(logits(loaded(tmp_path)), logits(loaded(peft_folder)))


def test_writes_the_18_keys_and_the_pt_format(tmp_path):
    write_adapter(tmp_path / "new" / "folder", pair(), config())
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, TENSORS_FILE]
    values = json.loads((folder / CONFIG_FILE).read_text())
    assert len(values) == 18
    assert values == config().to_json_dict()
    with safetensors.safe_open(folder / TENSORS_FILE, "numpy") as handle:
        assert handle.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_reading_returns_what_was_written(tmp_path, dtype):
    write_adapter(tmp_path, pair(dtype=dtype), config())
    adapter = read_adapter(tmp_path)
    assert adapter.config == config()
    assert adapter.tensors[A].dtype == dtype
    np.testing.assert_array_equal(adapter.tensors[B], pair(dtype=dtype)[B])


NORM = {"base_model.model.model.norm.weight": np.ones(16, np.float32)}
BAD = {
    "empty": ({}, {}, "0 tensors"),
    "no-pair": (NORM, {}, "no lora_A"),
    "no-B": ({A: pair()[A]}, {}, "without its lora_B"),
    "no-A": ({B: pair()[B]}, {}, "without its lora_A"),
    "ranks-disagree": (pair() | {B: np.ones((16, 2), np.float32)}, {}, "of one rank R"),
    "transposed": ({A: pair()[A].T, B: pair()[B].T}, {}, "rank 3"),
    "vector": ({A: np.ones(3, np.float32), B: pair()[B]}, {}, "of one rank R"),
    "not-r": (pair(2), {}, "rank 3"),
    "not-rank-pattern": (pair(), {"rank_pattern": {"q_proj": 2}}, "rank 2"),
    "float64": (pair(dtype=np.float64), {}, "dtype float64"),
    "int8": (pair(dtype=np.int8), {}, "dtype int8"),
    "not-a-target": (pair(), {"target_modules": ["v_proj"]}, "would skip"),
    "adapter-name": ({A.replace("A.", "A.default."): pair()[A]}, {}, "the name"),
    "dora": (pair() | {f"{MODULE}.lora_magnitude_vector": pair()[A]}, {}, "the name"),
    "lora-bias": (pair() | {f"{MODULE}.lora_B.bias": pair()[A]}, {}, "the name"),
    "no-prefix": ({"model.norm.weight": pair()[A]} | pair(), {}, "the name"),
}


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_peft_would_not_load_are_refused_and_nothing_is_written(tmp_path, case):
    tensors, changes, said = BAD[case]
    with pytest.raises(CheckpointError, match=said):
        write_adapter(tmp_path / "lora", tensors, config(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", BAD)
def test_a_folder_with_such_tensors_is_refused_by_file_name(tmp_path, case):
    tensors, changes, said = BAD[case]
    write_adapter(tmp_path, pair(), config())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config(**changes).to_json_dict()))
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(plain, tmp_path / TENSORS_FILE)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_adapter(tmp_path)
    assert TENSORS_FILE in str(caught.value)


def test_rank_under_a_regular_expression_is_taken_from_the_tensors(tmp_path):
    write_adapter(tmp_path, pair(2), config(rank_pattern={r".*\.q_pro[a-z]": 2}))
    assert read_adapter(tmp_path).tensors[A].shape == (2, 16)


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSORS_FILE])
def test_missing_file_is_named(tmp_path, name):
    write_adapter(tmp_path, pair(), config())
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"no {name}"):
        read_adapter(tmp_path)


def test_adapter_that_is_only_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    write_adapter(tmp_path, pair(), config())
    (tmp_path / TENSORS_FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle.*PeftModel\.from_pretrained"):
        read_adapter(tmp_path)


def test_truncated_tensors_are_refused(tmp_path):
    write_adapter(tmp_path, pair(), config())
    data = (tmp_path / TENSORS_FILE).read_bytes()
    (tmp_path / TENSORS_FILE).write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="must fill the file"):
        read_adapter(tmp_path)


def test_config_that_is_no_json_object_is_refused(tmp_path):
    write_adapter(tmp_path, pair(), config())
    (tmp_path / CONFIG_FILE).write_text("[]")
    with pytest.raises(CheckpointError, match=CONFIG_FILE):
        read_adapter(tmp_path)


def test_a_save_that_dies_keeps_the_old_adapter(tmp_path, monkeypatch):
    write_adapter(tmp_path, pair(), config())
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def die(*_):
        raise OSError("killed")

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(OSError, match="killed"):
        write_adapter(tmp_path, {A: 2 * pair()[A], B: pair()[B]}, config(lora_alpha=1))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_neither_file_is_replaced_before_both_are_complete(tmp_path, monkeypatch):
    def die(*_):
        raise OSError("killed")

    monkeypatch.setattr("convert.peft.write_json", die)
    with pytest.raises(OSError, match="killed"):
        write_adapter(tmp_path, pair(), config())
    assert not list(tmp_path.iterdir())
