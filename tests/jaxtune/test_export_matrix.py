"""Every export of every family, loaded by those who use it: peft, transformers, bitsandbytes, gguf.

In float32 against float64, so that what differs is the export; the finer cases are in the tests of
each export.
"""

import dataclasses
import functools
from pathlib import Path

import bitsandbytes
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxtune.language_model import LanguageModel
from tests.jaxtune.test_gguf_export import FAMILIES, read_by_transformers, read_gemma, variant
from tests.loaded import load_adapted
from tests.oracles import Oracle, make_oracle, oracle_logits, random_rows
from tests.quantized_models import dequantized_weight, load
from tests.tolerances import relative_error, tolerance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parity,
    # A tiny model has no tokenizer.
    pytest.mark.filterwarnings("ignore:.*holds no tokenizer files:UserWarning"),
]
ROWS = random_rows((2, 9))
LIMIT = tolerance("float32", "logits")
NAMES = [name for name in FAMILIES if name != "llama-biases-linear-rope"]


@functools.cache
def oracle_of(name: str, folder: Path) -> Oracle:
    return make_oracle(variant(name), folder / name, initializer_range=0.3)


@functools.cache
def ours_of(name: str, folder: Path) -> LanguageModel:
    return load_adapted(oracle_of(name, folder).adapter_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@torch.no_grad()
def logits(model: torch.nn.Module) -> np.ndarray:
    return model.eval()(input_ids=torch.tensor(ROWS)).logits.double().numpy()


def transformers_model(folder: Path) -> torch.nn.Module:
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("name", NAMES)
def test_peft_loads_the_adapter(name: str, folder: Path, tmp_path: Path) -> None:
    oracle = oracle_of(name, folder)
    ours_of(name, folder).save_pretrained(tmp_path)
    model = peft.PeftModel.from_pretrained(transformers_model(oracle.folder), tmp_path)
    assert relative_error(logits(model), oracle_logits(oracle, ROWS)) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_the_merged_model(name: str, folder: Path, tmp_path: Path) -> None:
    oracle = oracle_of(name, folder)
    ours_of(name, folder).save_pretrained_merged(tmp_path)
    merged = oracle_logits(oracle, ROWS)
    assert relative_error(logits(transformers_model(tmp_path)), merged) <= 0.1  # bfloat16 weights
    from jaxtune.saving import save_merged

    save_merged(ours_of(name, folder), tmp_path / "wide", dtype=np.dtype(np.float32))
    assert relative_error(logits(transformers_model(tmp_path / "wide")), merged) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_bitsandbytes_loads_the_merged_4_bit_model(name: str, tmp_path: Path) -> None:
    """Its values, in float32: its own product rounds to 16 bits.

    Rows of 64 and more: where they are shorter than a block, its kernel for CPUs reads the scales
    of other rows (0.50.2).
    """
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    if "query_pre_attn_scalar" in variant(name).options:
        wide["query_pre_attn_scalar"] = 16
    held_variant = dataclasses.replace(variant(name), options={**variant(name).options, **wide})
    oracle = make_oracle(held_variant, tmp_path / "oracle", initializer_range=0.2)
    load_adapted(oracle.adapter_folder).save_pretrained_merged(tmp_path, save_method="merged_4bit")
    held = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    values = {name: value.float() for name, value in held.named_parameters()}
    small = 0
    for path, module in held.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = dequantized_weight(module.weight.data, module.weight.quant_state)
            values[f"{path}.weight"], small = weight.float(), small + 1
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    del config.quantization_config
    kind = transformers.AutoModelForCausalLM
    model = kind.from_config(config, attn_implementation="eager").float()
    found = model.load_state_dict(values, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}  # tied
    assert small == 7 * config.num_hidden_layers
    actual = load(tmp_path)(ROWS.astype(np.int32))
    assert relative_error(actual, logits(model)) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_gguf_readers_load_the_file(name: str, folder: Path, tmp_path: Path) -> None:
    oracle = oracle_of(name, folder)
    files = ours_of(name, folder).save_pretrained_gguf(
        tmp_path, quantization_method=["f32", "q8_0"]
    )
    read = read_gemma if name.startswith("gemma-") else read_by_transformers
    expected = oracle_logits(oracle, ROWS)
    wide, small = (relative_error(logits(read(file, oracle.folder)), expected) for file in files)
    assert wide <= LIMIT
    assert LIMIT < small <= 0.3
