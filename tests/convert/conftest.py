"""Oracles of the convert tests: a tiny random Llama and a LoRA adapter that peft itself saved."""

from pathlib import Path

import peft
import pytest
import torch
import transformers

TARGETS = ["q_proj", "v_proj", "down_proj"]


def tiny_llama() -> transformers.LlamaForCausalLM:
    """The same random weights at each call, in float32."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def llama() -> transformers.LlamaForCausalLM:
    return tiny_llama()


def wrap(model: torch.nn.Module, config: peft.LoraConfig) -> peft.PeftModel:
    """Add LoRA to `model`, with a B that is not zero."""
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.eval()


@pytest.fixture(scope="session")
def peft_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What peft writes for plain LoRA of rank 3."""
    folder = tmp_path_factory.mktemp("peft")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM")
    wrap(tiny_llama(), config).save_pretrained(folder)
    return folder
