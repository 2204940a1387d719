import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers

from convert.__main__ import main
from convert.checkpoint import SINGLE_FILE, open_checkpoint
from convert.errors import CheckpointError
from convert.merged import merge_adapter
from convert.rounding import cast
from tests.convert.conftest import adapt, load, logits, names_in

bitsandbytes = pytest.importorskip("bitsandbytes")
F32, F16, BF16 = (np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
SKIPPED = ["lm_head", "model.layers.1.mlp"]


def save_base(folder, dtype, **options):
    """A tiny llama of random weights, quantised by bitsandbytes and saved by transformers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "dense")
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, **options)
    transformers.AutoModelForCausalLM.from_pretrained(
        folder / "dense", quantization_config=settings, dtype=dtype, device_map="cpu"
    ).save_pretrained(folder / "base")
    return folder / "base"


OPTIONS = {
    "nf4-double": {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": SKIPPED,
    },
    "fp4": {"bnb_4bit_quant_type": "fp4", "llm_int8_skip_modules": SKIPPED},
    "stored-as-bfloat16": {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": torch.bfloat16,
        "llm_int8_skip_modules": SKIPPED,
    },
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A 4-bit base and an adapter that peft trained over it; bitsandbytes' forward is not run,
    since it wants sizes that are multiples of 32 where the CPU has avx512_bf16.

    Attributes:
      base: The base's folder.
      adapter: The adapter's.
      merged: peft's own merge, in float64 over what bitsandbytes says that the 4 bits are.
    """

    base: Path
    adapter: Path
    merged: torch.nn.Module


@pytest.fixture(scope="module", params=OPTIONS)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    base = save_base(folder, torch.float16, **OPTIONS[request.param])
    adapt(base, folder / "lora", target_modules="all-linear", modules_to_save=["norm"])
    dense = load(folder / "dense").float()
    dense.load_state_dict(dequantized(base))
    merged = peft.PeftModel.from_pretrained(dense.double(), folder / "lora").double()
    return Trained(base, folder / "lora", merged.merge_and_unload().eval())


def dequantized(base):
    """The base's tensors as transformers' modules and bitsandbytes have them, in float32."""
    model = load(base)
    tensors = {name: tensor.float() for name, tensor in model.named_parameters()}
    found = 0
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            state.dtype = torch.float32
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
            tensors[f"{name}.weight"] = weight
            found += 1
    assert found == 11  # of 14 projections; three are skipped
    return tensors


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_merged_weights_are_those_of_peft_over_the_dequantised_base(tmp_path, trained, dtype):
    merge_adapter(trained.base, trained.adapter, tmp_path / "out", dtype=dtype)
    wanted = trained.merged.state_dict()
    with open_checkpoint(tmp_path / "out") as checkpoint:
        got = {name: checkpoint.read(name) for name in checkpoint.names}
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        # Rounded by us, since torch goes from float64 to 16 bits by way of float32.
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, cast(wanted[name].numpy(), dtype), name)


@pytest.mark.parity
def test_the_result_is_a_16_bit_model_that_transformers_loads(tmp_path, trained):
    merge_adapter(trained.base, trained.adapter, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float16"
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert {checkpoint.info(name).dtype for name in checkpoint.names} == {F16}
        assert all(name.endswith(".weight") for name in checkpoint.names)
    got, wanted = logits(load(tmp_path / "out").float()), logits(trained.merged).float()
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)
    dense = logits(load(trained.base.parent / "dense").float())
    assert not torch.allclose(got, dense, atol=0.5)


@pytest.mark.parity
def test_the_command_line_merges_into_4_bits_and_rewrites_the_adapter(tmp_path, trained, capsys):
    merge_adapter(trained.base, trained.adapter, tmp_path / "wanted", dtype=BF16)
    assert main(["peft", str(trained.adapter), str(tmp_path / "lora")]) == 0
    arguments = ["merged", str(tmp_path / "lora"), str(tmp_path / "out"), "--dtype", "bfloat16"]
    assert main(arguments) == 0  # the adapter names its base, the 4-bit folder
    assert "21 tensors" in capsys.readouterr().out.splitlines()[-1]
    names = names_in(tmp_path / "wanted")
    assert names_in(tmp_path / "out") == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes()
    first, second = (
        peft.PeftModel.from_pretrained(load(trained.base), folder).state_dict()
        for folder in (trained.adapter, tmp_path / "lora")
    )
    adapted = [name for name in first if "lora_" in name or "modules_to_save" in name]
    assert len(adapted) == 2 * 14 + 5  # pairs, and every norm
    assert all(torch.equal(first[name], second[name]) for name in adapted)


def changed(values, changes):
    """A copy with other values; None takes one out."""
    return {key: value for key, value in (values | changes).items() if value is not None}


def copied(trained, folder, config=(), tensors=()):
    """The base in a folder of its own, with other values in its files."""
    base = shutil.copytree(trained.base, folder / "base")
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(changed(values, dict(config))))
    arrays = safetensors.numpy.load_file(base / SINGLE_FILE)
    safetensors.numpy.save_file(changed(arrays, dict(tensors)), base / SINGLE_FILE)
    return base


def test_the_dtype_is_the_quantised_models_where_config_json_does_not_say(tmp_path, trained):
    base = copied(trained, tmp_path, config={"dtype": None})
    merge_adapter(base, trained.adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_another_adapters_shape_is_seen_by_that_of_the_weight_not_of_its_codes(tmp_path, trained):
    lora = shutil.copytree(trained.adapter, tmp_path / "lora")
    tensors = safetensors.numpy.load_file(lora / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    tensors[name] = tensors[name][:, 1:].copy()
    safetensors.numpy.save_file(tensors, lora / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"got \(64, 171\) for .*its shape \(64, 172\)"):
        merge_adapter(trained.base, lora, tmp_path / "out")


def test_a_damaged_part_is_refused_before_anything_is_written(tmp_path, trained):
    name = "model.layers.0.mlp.down_proj.weight.absmax"
    base = copied(trained, tmp_path, tensors={name: np.zeros(3, np.uint8)})
    with pytest.raises(CheckpointError, match="as its quant_state says"):
        merge_adapter(base, trained.adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_codes_without_their_state_take_no_adapter(tmp_path, trained):
    name = "model.layers.0.self_attn.q_proj.weight"
    with open_checkpoint(trained.base) as checkpoint:
        parts = [part for part in checkpoint.names if part.startswith(f"{name}.")]
    changes = dict.fromkeys(parts) | {name: np.ones((64, 64), np.uint8)}
    base = copied(trained, tmp_path, tensors=changes)
    with pytest.raises(CheckpointError, match=f"a LoRA pair for '{name}' of uint8"):
        merge_adapter(base, trained.adapter, tmp_path / "out")
