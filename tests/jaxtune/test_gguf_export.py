"""GGUF files read back: by transformers' own reader as a model, and tensor by tensor."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize, quantize

from convert import CheckpointError
from convert.__main__ import main
from jaxtune import FastLanguageModel
from jaxtune.language_model import LanguageModel
from tests.families import BY_NAME, VARIANTS, Variant
from tests.loaded import load_adapted
from tests.oracles import Oracle, make_oracle, oracle_logits, random_rows
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity
ROWS = random_rows((2, 9))
METHODS = ["f32", "f16", "bf16", "q8_0"]
# What llama.cpp computes otherwise is refused; here it is as llama.cpp has it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-tied-llama3-rope": {},
    "llama-biases-linear-rope": {},
    "mistral-no-window": {},
    "gemma-one-kv-head": {},
    "gemma2-five-layers": {"query_pre_attn_scalar": 12},
    "gemma3-tail-two-ropes": {"query_pre_attn_scalar": 12, "final_logit_softcapping": None},
    "qwen3-last-layers-windowed": {"attention_bias": False},
}


def variant(name: str) -> Variant:
    held = VARIANTS[BY_NAME[name]]
    return dataclasses.replace(held, options={**held.options, **FAMILIES[name]})


@functools.cache
def oracle_of(name: str, folder: Path) -> Oracle:
    return make_oracle(variant(name), folder / name, initializer_range=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def llama(folder: Path) -> LanguageModel:
    return load_adapted(oracle_of("llama-tied-llama3-rope", folder).adapter_folder)


def read_by_transformers(file: Path, base: Path) -> torch.nn.Module:
    """The weights by transformers; it reads only part of RoPE and windows from such files."""
    config = transformers.AutoConfig.from_pretrained(base)
    if config.model_type == "mistral":  # its reader tells the two apart by the file's name
        config = transformers.LlamaConfig(**{**config.to_dict(), "model_type": "llama"})
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()


def read_gemma(file: Path, base: Path) -> torch.nn.Module:
    """Gemma 1, which transformers does not read: by the inverse of what llama.cpp's names mean."""
    short = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    short |= {f"attn_{side}": f"self_attn.{side}_proj" for side in "qkv"}
    short |= {"attn_output": "self_attn.o_proj"}
    short |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    outside = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    tensors = {}
    for tensor in GGUFReader(file).tensors:
        *lead, name, part = tensor.name.split(".")
        name = f"model.layers.{lead[1]}.{short[name]}" if lead else outside[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        values = values - 1 if "norm" in name else values
        tensors[f"{name}.{part}"] = torch.tensor(np.array(values, np.float32))
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    found = model.load_state_dict(tensors, strict=False)
    assert found.missing_keys == ["lm_head.weight"]
    assert not found.unexpected_keys
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_read_back_gives_the_adapted_models_logits(
    name: str, folder: Path, tmp_path: Path
) -> None:
    oracle = oracle_of(name, folder)
    (file,) = load_adapted(oracle.adapter_folder).save_pretrained_gguf(
        tmp_path, quantization_method="f32"
    )
    read = read_gemma if name.startswith("gemma-") else read_by_transformers
    with torch.no_grad():
        actual = read(file, oracle.folder)(input_ids=torch.tensor(ROWS)).logits.numpy()
    assert relative_error(actual, oracle_logits(oracle, ROWS)) <= tolerance("float32", "logits")


def tensors_of(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(file).tensors}


def test_each_method_is_the_float32_file_rounded_once(llama: LanguageModel, tmp_path: Path) -> None:
    files = llama.save_pretrained_gguf(tmp_path / "new", quantization_method=METHODS)
    assert [file.name for file in files] == [f"base.{name.upper()}.gguf" for name in METHODS]
    wide, half, brain, bytes_ = map(tensors_of, files)
    assert wide.keys() == half.keys() == brain.keys() == bytes_.keys()
    kinds = {"F32", "F16", "BF16", "Q8_0"}
    for name, tensor in wide.items():
        exact = np.asarray(tensor.data, np.float32)
        if len(tensor.shape) == 1:
            for other in (half, brain, bytes_):
                assert other[name].tensor_type.name == "F32"
                np.testing.assert_array_equal(other[name].data, exact)
            continue
        kinds -= {other[name].tensor_type.name for other in (wide, half, brain, bytes_)}
        # The merge is rounded from float64; float32 in between moves at most the last bit.
        for held, kind in ((half[name].data, np.float16), (brain[name].data, ml_dtypes.bfloat16)):
            bits = np.asarray(held).view(np.int16).reshape(exact.shape).astype(int)
            rounded = exact.astype(kind).view(np.int16).astype(int)
            assert np.abs(bits - rounded).max() <= 1
            assert (bits != rounded).sum() <= 3
        if bytes_[name].tensor_type.name == "Q8_0":
            wanted = quantize(exact, GGMLQuantizationType.Q8_0)
            np.testing.assert_array_equal(bytes_[name].data, wanted)
        else:  # rows of 44: no multiple of 32
            assert exact.shape[-1] % 32
            np.testing.assert_array_equal(bytes_[name].data, half[name].data)
    assert not kinds
    llama.save_pretrained_gguf(tmp_path / "new", quantization_method=["Q8_0", "fast_quantized"])
    assert len(list((tmp_path / "new").iterdir())) == 4
    (plain,) = llama.save_pretrained_gguf(tmp_path, quantization_method="not_quantized")
    assert plain.name == "base.BF16.gguf"


def test_what_the_file_says_of_the_model_and_its_tokenizer(assets: Path, tmp_path: Path) -> None:
    folder = assets / "stories260K"
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder), load_in_4bit=False, dtype="float32"
    )
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    (file,) = model.save_pretrained_gguf(tmp_path, tokenizer)
    fields = GGUFReader(file).fields
    said = {name: field.contents() for name, field in fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["general.name"] == "stories260K"
    assert said["llama.block_count"] == 5
    assert said["llama.attention.head_count_kv"] == 4
    assert said["llama.context_length"] == model.config.max_position_embeddings
    assert said["tokenizer.ggml.model"] == "llama"
    assert said["tokenizer.ggml.add_space_prefix"] is True
    assert said["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert said["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert said["tokenizer.chat_template"] == tokenizer.chat_template
    assert len(said["tokenizer.ggml.tokens"]) == model.config.vocab_size
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    text = "Once upon a time, there was a little girl named Lily."
    assert theirs(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_command_line_writes_the_same_file(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without jaxtune: of an adapter, and of the merged model."""
    base = str(assets / "stories260K")
    model, tokenizer = FastLanguageModel.from_pretrained(
        base, None, dtype="float32", load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(model, r=4, init_lora_weights=False)
    model.save_pretrained(tmp_path / "stories")
    tokenizer.save_pretrained(tmp_path / "stories")
    model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    (ours,) = model.save_pretrained_gguf(tmp_path, quantization_method="bf16")
    wanted, said = tensors_of(ours), GGUFReader(ours).fields
    for source in ("stories", "merged"):
        out = tmp_path / f"of-{source}"
        command = ["gguf", str(tmp_path / source), str(out), "--method", "bf16"]
        assert main([*command, "--base", base] if source == "stories" else command) == 0
        file = out / f"{source}.BF16.gguf"
        assert f"llama-cli -m {file}" in capsys.readouterr().out
        read, fields = tensors_of(file), GGUFReader(file).fields
        assert read.keys() == wanted.keys()
        for name, tensor in wanted.items():
            exact = tensor.data
            if source == "merged" and len(tensor.shape) == 1:  # the folder has rounded norms
                exact = exact.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(read[name].data, exact, err_msg=name)
        assert fields.keys() == said.keys()
        for name in said.keys() - {"general.name", "tokenizer.chat_template"}:
            assert fields[name].contents() == said[name].contents(), name
    assert main(["gguf", base, str(tmp_path / "no"), "--method", "q4_k_m"]) == 2
    assert "llama-quantize" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("q4_k_m", r"llama-quantize .*base\.BF16\.gguf .*base\.Q4_K_M\.gguf Q4_K_M"),
        (["f16", "quantized"], r"llama-quantize .*base\.BF16\.gguf .* Q4_K_M"),
        ("int8", "quantization method must be one that is written here; got 'int8'"),
        ([], "got 'nothing'"),
    ],
)
def test_another_method_says_what_makes_it_and_writes_nothing(
    llama: LanguageModel, tmp_path: Path, method: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        llama.save_pretrained_gguf(tmp_path / "out", quantization_method=method)
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_the_old_file(
    llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = llama.save_pretrained_gguf(tmp_path, quantization_method="f32")
    before = file.read_bytes()
    from jaxtune import merged_tensors

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merged_tensors, "merge_linear", fail)
    with pytest.raises(OSError, match="No space left"):
        llama.save_pretrained_gguf(tmp_path, quantization_method="f32")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
