"""Loading: what is wrong is said before any weight is read."""

import json
import shutil
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

import jaxtune
from jaxtune import FastLanguageModel
from jaxtune.errors import (
    IncompatibleCheckpointError,
    NotBuiltYetError,
    UnsupportedModelError,
)
from jaxtune.models.configuration import read_hf_config
from jaxtune.models.precision import resolve_dtype
from pallas_kernels import Unsupported
from tests.base_install import write_model
from tests.families import VARIANTS
from tests.loaded import load_base
from tests.oracles import make_oracle, oracle_logits, random_rows
from tests.tolerances import relative_error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path)
    return tmp_path


def load(name: str | Path, **options: Any) -> tuple[Any, Any]:
    settings = {"max_seq_length": 32, "load_in_4bit": False, **options}
    return FastLanguageModel.from_pretrained(str(name), **settings)


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps(config))


def test_weights_land_in_their_layers_bit_for_bit(folder: Path) -> None:
    model, _ = load(folder)
    weights = load_file(folder / "model.safetensors")
    layers = model.model.layers
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.k_proj.weight"
        np.testing.assert_array_equal(layers.self_attn.k_proj.weight[...][layer], weights[name])
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight[...], weights["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize(
    ("platform", "capability", "supported"),
    [("cpu", None, False), ("gpu", "7.5", False), ("gpu", "8.0", True), ("tpu", None, True)],
)
def test_bfloat16_is_supported_where_it_is_the_default(
    platform: str, capability: str | None, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = types.SimpleNamespace(platform=platform, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert jaxtune.is_bfloat16_supported() is supported


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", jnp.bfloat16),
        (jnp.float16, jnp.float16),
        (np.dtype("float32"), jnp.float32),
        (torch.bfloat16, jnp.bfloat16),
        (jnp.dtype("bfloat16"), jnp.bfloat16),
    ],
)
def test_a_dtype_may_be_said_in_any_way(dtype: Any, expected: Any) -> None:
    assert resolve_dtype(dtype) == expected


def test_the_default_dtype_on_a_cpu_is_float32() -> None:
    if jax.default_backend() == "cpu":
        assert resolve_dtype(None) == jnp.float32
    with pytest.raises(ValueError, match="`dtype` must be float32"):
        resolve_dtype("int8")


@pytest.mark.parity
@pytest.mark.parametrize("variant", [1, 3])
def test_bfloat16_is_as_near_to_the_truth_as_transformers(variant: int, tmp_path: Path) -> None:
    oracle = make_oracle(VARIANTS[variant], tmp_path, initializer_range=0.3)
    rows = random_rows((2, 19))
    truth = oracle_logits(oracle, rows, adapters=False)
    base = oracle.model.get_base_model().bfloat16()
    with torch.no_grad(), oracle.model.disable_adapter():
        theirs = base(input_ids=torch.tensor(rows)).logits.float().numpy()
    ours = load_base(oracle.folder, dtype=jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    actual = np.asarray(ours(rows.astype(np.int32)))
    # Root mean squares: the largest error of 16-bit noise is a matter of luck.
    error, peer = (float(np.sqrt(np.mean((x - truth) ** 2))) for x in (actual, theirs))
    assert 0 < error <= 1.25 * peer
    assert relative_error(actual, truth) < 0.2


def test_a_missing_or_misshapen_tensor_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    lost = dict(weights)
    del lost["model.layers.1.mlp.up_proj.weight"]
    save_file(lost, folder / "model.safetensors")
    with pytest.raises(IncompatibleCheckpointError, match=r"lacks model\.layers\.1\.mlp\.up_proj"):
        load(folder)
    save_file({**weights, "model.layers.0.extra.weight": np.ones(2)}, folder / "model.safetensors")
    with pytest.raises(IncompatibleCheckpointError, match=r"unexpected model\.layers\.0\.extra"):
        load(folder)
    weights["model.norm.weight"] = np.ones(17, np.float32)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(IncompatibleCheckpointError, match=r"must have shape \(16,\).*has \(17,\)"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "`model_type` must be one of"),
        ({"shiny_attention": True}, r"every key .* must be understood.*shiny_attention"),
        ({"attention_dropout": 0.1}, "`attention_dropout` must be one of"),
        ({"pretraining_tp": 2}, "`pretraining_tp` must be one of"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type must be one of"),
        ({"hidden_act": "relu"}, "`hidden_act` must be one of"),
    ],
)
def test_unknown_maths_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(UnsupportedModelError, match=message):
        load(folder)


PLANS = {
    True: "full",
    False: "none",
    "unsloth": "offload",
    "full": "full",
    "none": "none",
    "gate_up": "gate_up",
    "attention": "attention",
    "offload": "offload",
    "least": "least",
}


def test_a_plan_is_chosen_while_loading_or_later_by_any_of_its_names(folder: Path) -> None:
    model, _ = load(folder, use_gradient_checkpointing="unsloth")
    assert model.model.remat == "offload"
    assert FastLanguageModel.for_training(model).model.remat == "offload"  # "auto" keeps it
    for choice, plan in PLANS.items():
        assert FastLanguageModel.for_training(model, choice).model.remat == plan
    FastLanguageModel.get_peft_model(model, r=2, use_gradient_checkpointing=False)
    assert model.model.remat == "none"
    assert load(folder)[0].model.remat == "full"


def test_what_is_not_built_yet_says_so(folder: Path) -> None:
    with pytest.raises(NotBuiltYetError, match="'most', which is not built yet"):
        load(folder, use_gradient_checkpointing="most")
    with pytest.raises(NotBuiltYetError, match="`load_in_8bit` must be one of"):
        load(folder, load_in_8bit=True)
    with pytest.raises(NotBuiltYetError, match="`resize_model_vocab` must be one of"):
        load(folder, resize_model_vocab=48)
    with pytest.raises(Unsupported, match="'triton': it needs an NVIDIA GPU"):
        load(folder, kernels="triton")
    with pytest.raises(ValueError, match="`kernels` must be one of"):
        load(folder, kernels="cuda")
    with pytest.raises(ValueError, match="`max_seq_length` must be >= 1"):
        load(folder, max_seq_length=0)


def test_what_scripts_pass_at_a_neutral_value_is_accepted(folder: Path) -> None:
    model, _ = load(
        folder,
        device_map="auto",
        fast_inference=False,
        load_in_8bit=False,
        use_exact_model_name=True,
        trust_remote_code=False,
    )
    options = {"loftq_config": {}, "max_seq_length": 32, "use_dora": False}
    FastLanguageModel.get_peft_model(model, r=2, **options)
    with pytest.raises(NotBuiltYetError, match="`loftq_config` must be one of"):
        FastLanguageModel.get_peft_model(model, r=2, loftq_config={"bits": 4})


def test_sixteen_bits_and_full_fine_tuning_override_four(folder: Path) -> None:
    model, _ = load(folder, load_in_4bit=True, load_in_16bit=True, dtype="bfloat16")
    assert model.model.layers.mlp.up_proj.weight[...].dtype == jnp.bfloat16
    model, _ = load(folder, load_in_4bit=True, full_finetuning=True, dtype="bfloat16")
    weight = model.model.layers.mlp.up_proj.weight
    assert isinstance(weight, nnx.Param)
    assert weight[...].dtype == jnp.float32
    assert model.dtype == jnp.bfloat16
    rows = np.array([[1, 5, 7]], np.int32)
    base, _ = load(folder, dtype="bfloat16")
    np.testing.assert_array_equal(model(rows), base(rows))
    # As in Unsloth, a script that asks for an adapter anyway goes on without one.
    assert FastLanguageModel.get_peft_model(model, r=4) is model
    assert model.carried.adapter is None


def test_the_seed_of_loading_is_the_adapters(folder: Path) -> None:
    def first(seed: int, **options: Any) -> np.ndarray:
        model = FastLanguageModel.get_peft_model(load(folder, random_state=seed)[0], r=2, **options)
        return np.asarray(model.model.layers.mlp.up_proj.lora_A[...])

    assert not np.array_equal(first(1), first(2))
    np.testing.assert_array_equal(first(1), first(2, random_state=1))


def test_a_folder_without_tokenizer_loads_with_a_warning(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.warns(UserWarning, match="holds no tokenizer files"):
        _, tokenizer = load(folder)
    assert tokenizer is None


def test_a_folder_without_config_or_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        load(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json"):
        read_hf_config(empty)


def test_a_row_beyond_the_range_is_refused(folder: Path) -> None:
    model, _ = load(folder)
    with pytest.raises(ValueError, match="65 tokens, wanted <= 64"):
        model(np.ones((1, 65), np.int32))


def test_a_copied_folder_loads_from_anywhere(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy with spaces"
    copy.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, copy / name)
    assert load(copy)[1] is not None


def shard(folder: Path) -> list[Path]:
    """Split the weights over two files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, files = sorted(weights), []
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        files.append(folder / f"model-{number:05}-of-00002.safetensors")
        save_file({name: weights[name] for name in part}, files[-1])
    index = {name: files[number % 2].name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return files


def test_shards_load_and_damaged_ones_are_refused(folder: Path) -> None:
    whole = load(folder)[0]
    files = shard(folder)
    rows = np.array([[1, 5, 7]], np.int32)
    np.testing.assert_array_equal(load(folder)[0](rows), whole(rows))
    data = files[1].read_bytes()
    files[1].write_bytes(data[:-7])
    with pytest.raises(ValueError, match=r"must fill the file; got .* bytes of data; wanted"):
        load(folder)
    files[1].write_bytes(data[:20])
    with pytest.raises(ValueError, match=r"header .* must fit in the file"):
        load(folder)
    files[1].unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors must exist"):
        load(folder)


def test_a_tokenizer_without_a_pad_token_gets_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, kept = load(folder, fix_tokenizer=False)
    assert kept.pad_token is None
    model, tokenizer = load(folder)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id < model.config.vocab_size
    assert "pad" in capsys.readouterr().out
    assert model.carried.tokenizer is tokenizer
