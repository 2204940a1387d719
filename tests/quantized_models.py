"""Tiny Llamas that real bitsandbytes quantised, and dense ones of the values that it gives."""

from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from jaxtune import FastLanguageModel
from jaxtune.adapters.modules import projections
from jaxtune.language_model import LanguageModel
from tests.oracles import ALL_PROJECTIONS, Oracle
from tests.words import word_tokenizer

# Six of 8 layers' 56 projections, at no regular distance, as a dynamic quantisation leaves them.
LEFT_DENSE = [
    "model.layers.0.mlp.down_proj",
    "model.layers.1.self_attn.q_proj",
    "model.layers.3.mlp.gate_proj",
    "model.layers.3.mlp.down_proj",
    "model.layers.6.self_attn.o_proj",
    "model.layers.7.mlp.down_proj",
]


def save_dense(folder: Path, *, layers: int, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Random weights; [20, 40] and [428, 40] end in part of a block, the latter has 268 blocks."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=40,
        intermediate_size=428,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.3)
    model.to(dtype).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_4bit(dense: Path, folder: Path, *, dtype: torch.dtype, **options: Any) -> Path:
    """A dense folder, quantised on the CPU as transformers does it."""
    settings = BitsAndBytesConfig(load_in_4bit=True, **options)
    AutoModelForCausalLM.from_pretrained(
        dense, quantization_config=settings, dtype=dtype, device_map="cpu"
    ).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def dequantized(folder: Path) -> LlamaForCausalLM:
    """The model of a 4-bit folder with bitsandbytes' own values, which float32 holds exactly.

    Its `Linear4bit.forward` is not run: it rounds to 16 bits, and on some CPUs wants sizes that
    are multiples of 32.
    """
    held = AutoModelForCausalLM.from_pretrained(folder)
    tensors = {name: value.float() for name, value in held.named_parameters()}
    for name, module in held.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            value = dequantized_weight(module.weight.data, module.weight.quant_state)
            tensors[f"{name}.weight"] = value.float()
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    model.load_state_dict(tensors)
    return model.eval()


dequantized_weight = bitsandbytes.functional.dequantize_4bit


def with_lora(folder: Path, adapter: Path) -> Oracle:
    """A 4-bit folder's values in float64 under a random PEFT adapter, which is saved."""
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=ALL_PROJECTIONS, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model = get_peft_model(dequantized(folder), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(adapter)
    return Oracle(folder, adapter, model.double().eval())


def projection(model: LanguageModel, path: str) -> Any:
    """The weight of a projection, by its path inside a layer."""
    return projections(model)[path].weight.get_value()


def load(folder: Path, *, load_in_4bit: bool = True, **options: Any) -> LanguageModel:
    """Ours, in float32 unless said otherwise."""
    settings = {"max_seq_length": 32, "dtype": "float32", **options}
    return FastLanguageModel.from_pretrained(str(folder), load_in_4bit=load_in_4bit, **settings)[0]


def dynamic_oracle(folder: Path) -> Oracle:
    """The mixed checkpoint of eight layers, its values, and an adapter."""
    dense = save_dense(folder / "dense", layers=8)
    base = save_4bit(
        dense,
        folder / "base",
        dtype=torch.bfloat16,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["lm_head", *LEFT_DENSE],
    )
    return with_lora(base, folder / "adapter")
