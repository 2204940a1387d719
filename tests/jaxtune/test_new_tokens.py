"""Tokens added to a vocabulary: rows as transformers resizes to, in every form that is written."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
import transformers
from flax import nnx

import jaxtune
from convert import CheckpointError, merge_adapter
from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer, to_torch
from jaxtune.language_model import LanguageModel
from jaxtune.models.vocabulary import with_mean
from tests.families import BY_NAME, VARIANTS
from tests.oracles import make_oracle
from tests.tolerances import relative_error, tolerance
from tests.words import word_tokenizer

NEW = ["<think>", "</think>"]
WHOLE = {"llama-untied": ["embed_tokens", "lm_head"], "llama-tied-llama3-rope": ["embed_tokens"]}


@pytest.fixture(scope="module", params=WHOLE)
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family, untied or tied, and the folder of a random model with its tokenizer."""
    folder = tmp_path_factory.mktemp("tokens")
    oracle = make_oracle(VARIANTS[BY_NAME[request.param]], folder, initializer_range=0.3)
    word_tokenizer().save_pretrained(oracle.folder)
    return request.param, oracle.folder


def load(folder: Path) -> tuple[LanguageModel, Any]:
    return FastLanguageModel.from_pretrained(
        str(folder), load_in_4bit=False, dtype="float32", max_seq_length=32
    )


def grown(base: tuple[str, Path], **options: Any) -> tuple[LanguageModel, Any]:
    model, tokenizer = load(base[1])
    jaxtune.add_new_tokens(model, tokenizer, NEW, **options)
    return model, tokenizer


def random_ids(size: int) -> np.ndarray:
    """Of every token, the new ones too."""
    return np.random.default_rng(0).permutation(size)[: size // 8 * 8].reshape(8, -1)[:, -24:]


def theirs(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits.float().numpy()


def check(model: LanguageModel, other: Any) -> None:
    ids = random_ids(model.config.vocab_size)
    got, wanted = np.asarray(model(ids.astype(np.int32))), theirs(other, ids)
    assert got.shape == wanted.shape
    assert relative_error(got, wanted) <= tolerance("float32", "logits")


def resized(folder: Path, size: int, rows: Any) -> Any:
    """transformers' model with as many rows, the new ones set."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = model.config.vocab_size
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix[before:] = torch.tensor(rows(matrix[:before].numpy()))
    return model


@pytest.mark.parity
def test_mean_rows_are_transformers_resized_model(base: tuple[str, Path]) -> None:
    model, tokenizer = load(base[1])
    size = model.config.vocab_size
    jaxtune.add_new_tokens(model, tokenizer, NEW)
    assert tokenizer.convert_tokens_to_ids(NEW) == [size, size + 1]
    assert model.config.vocab_size == model.carried.hf_config["vocab_size"] == size + 2
    other = resized(base[1], size + 2, lambda rows: rows.mean(0, keepdims=True))
    check(model, other)
    check(model, to_torch(model))


def test_interpolated_rows_lean_to_what_the_text_was_cut_into(base: tuple[str, Path]) -> None:
    model, tokenizer = load(base[1])
    old = np.asarray(model.model.embed_tokens.weight.get_value())
    known = min(len(tokenizer), len(old))
    pieces = tokenizer("w1 w2", add_special_tokens=False)["input_ids"]
    jaxtune.add_new_tokens(model, tokenizer, ["w1 w2"], "interpolation", 0.25)
    number = tokenizer.convert_tokens_to_ids("w1 w2")
    wanted = 0.75 * old[:known].mean(0) + 0.25 * old[pieces].mean(0)
    got = np.asarray(model.model.embed_tokens.weight.get_value())
    np.testing.assert_allclose(got[number], wanted, rtol=1e-5, atol=1e-6)
    rest = [i for i in range(len(old)) if i != number]
    np.testing.assert_array_equal(got[rest], old[rest])


def test_rows_without_a_token_are_used_first(tmp_path: Path) -> None:
    variant = VARIANTS[BY_NAME["llama-untied"]]
    padded = type(variant)("padded", "llama", variant.configured(vocab_size=104))
    oracle = make_oracle(padded, tmp_path, initializer_range=0.3)
    word_tokenizer().save_pretrained(oracle.folder)
    model, tokenizer = load(oracle.folder)
    old = np.asarray(model.lm_head.weight.get_value())
    jaxtune.add_new_tokens(model, tokenizer, NEW)
    got = np.asarray(model.lm_head.weight.get_value())
    assert (len(got), tokenizer.convert_tokens_to_ids(NEW)) == (104, [97, 98])
    np.testing.assert_allclose(got[97:99], np.stack([old[:97].mean(0)] * 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.delete(got, [97, 98], 0), np.delete(old, [97, 98], 0))
    with pytest.raises(ValueError, match="must hold their rows"):
        FastLanguageModel.get_peft_model(model, r=2)


def adapted(base: tuple[str, Path]) -> tuple[LanguageModel, Any]:
    """With an adapter whose every value is off what it was at first."""
    model, tokenizer = grown(base)
    model = FastLanguageModel.get_peft_model(model, r=2, modules_to_save=WHOLE[base[0]])
    draw = np.random.default_rng(3)
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = leaf.get_value()
        leaf.set_value(value + 0.1 * draw.normal(size=value.shape).astype(value.dtype))
    nnx.update(model, nnx.state(model, nnx.Param))
    return model, tokenizer


@pytest.mark.slow
def test_the_new_rows_learn(base: tuple[str, Path]) -> None:
    model, tokenizer = grown(base)
    model = FastLanguageModel.get_peft_model(model, r=2, modules_to_save=WHOLE[base[0]])
    before = np.asarray(model.model.embed_tokens.trained_weight.get_value())
    args = SFTConfig(max_steps=1, learning_rate=1e-2, warmup_steps=0, disable_tqdm=True)
    rows = [{"text": f"<think> w{i} w2 </think> w3"} for i in range(8)]
    SFTTrainer(model, args=args, train_dataset=rows, tokenizer=tokenizer).train()
    after = np.asarray(model.model.embed_tokens.trained_weight.get_value())
    assert (np.abs(after - before)[tokenizer.convert_tokens_to_ids(NEW)] > 0).all()


@pytest.mark.parity
def test_an_adapter_over_new_tokens_is_peft_s_over_a_resized_base(
    base: tuple[str, Path], tmp_path: Path
) -> None:
    model, tokenizer = adapted(base)
    size = model.config.vocab_size
    model.save_pretrained(tmp_path / "lora", verify=True)
    tokenizer.save_pretrained(tmp_path / "lora")
    assert f"resize_token_embeddings({size})" in (tmp_path / "lora" / "README.md").read_text()
    other = resized(base[1], size, lambda rows: rows.mean(0, keepdims=True))
    check(model, peft.PeftModel.from_pretrained(other, tmp_path / "lora"))
    ids = random_ids(size).astype(np.int32)
    assert relative_error(*(np.asarray(model(ids, adapters=on)) for on in (True, False))) > 0.01
    again, read = load(tmp_path / "lora")
    assert read.convert_tokens_to_ids(NEW) == [size - 2, size - 1]
    np.testing.assert_array_equal(again(ids), model(ids))
    # Merged here, and without JAX: the same tensors, and a model that transformers loads.
    model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    merge_adapter(base[1], tmp_path / "lora", tmp_path / "converted")
    for folder in ("merged", "converted"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["vocab_size"] == size
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert merged.get_input_embeddings().weight.shape[0] == size
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == (
        tmp_path / "converted" / "model.safetensors"
    ).read_bytes()


def test_an_adapter_without_the_rows_is_refused(base: tuple[str, Path]) -> None:
    model, _ = grown(base)
    lacking = WHOLE[base[0]][:-1]
    said = f"must hold their rows.*Pass modules_to_save={re.escape(str(WHOLE[base[0]]))}"
    with pytest.raises(ValueError, match=said):
        FastLanguageModel.get_peft_model(model, r=2, modules_to_save=lacking or None)
    assert model.carried.adapter is None


@pytest.mark.parametrize("base", ["llama-untied"], indirect=True)
def test_a_head_of_fewer_rows_is_no_merge(base: tuple[str, Path], tmp_path: Path) -> None:
    model, _ = adapted(base)
    model.save_pretrained(tmp_path / "lora")
    file = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    del tensors["base_model.model.lm_head.weight"]
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError, match="must have a row for each token"):
        merge_adapter(base[1], tmp_path / "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_added_is_refused_and_changes_nothing(base: tuple[str, Path]) -> None:
    model, tokenizer = load(base[1])
    rows, tokens = model.config.vocab_size, len(tokenizer)
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (["<a>", "<a>"], {}, "a text of its own"),
        (["w1"], {}, r"got \['w1'\]"),
        ([""], {}, "a text of its own"),
        (["<a>"], {"method": "zeros"}, "`method` must be one of"),
        (["<a>"], {"interpolation": 2}, "must be in"),
    ]
    for new, options, said in wrong:
        with pytest.raises(ValueError, match=said):
            jaxtune.add_new_tokens(model, tokenizer, new, **options)
    with pytest.raises(TypeError, match="Pass \\['<a>'\\]"):
        jaxtune.add_new_tokens(model, tokenizer, "<a>")
    jaxtune.add_new_tokens(model, tokenizer, [])
    adapted = FastLanguageModel.get_peft_model(model, r=2)
    with pytest.raises(ValueError, match="before get_peft_model"):
        jaxtune.add_new_tokens(adapted, tokenizer, ["<a>"])
    assert (model.config.vocab_size, len(tokenizer)) == (rows, tokens)


def test_the_mean_is_over_the_known_rows() -> None:
    rows = np.array([[1, 2], [3, 4], [99, 99]], np.float32)
    np.testing.assert_array_equal(with_mean(rows, 5, known=2)[3:], [[2, 3], [2, 3]])
