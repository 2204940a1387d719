"""Oracles of the convert tests: tiny random models of transformers, adapters that peft saved."""

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.arange(3, 15).reshape(2, 6)
FAMILIES = ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "gemma3")
_TEXT = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


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


def tiny_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """The same random float32 model of a family at each call, its norms and biases random too."""
    torch.manual_seed(0)
    if family == "gemma3":
        config = transformers.Gemma3Config(
            text_config=_TEXT | {"query_pre_attn_scalar": 4},
            vision_config=_VISION,
            image_token_index=90,
            mm_tokens_per_image=4,
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        config = transformers.AutoConfig.for_model(family, **(_TEXT | changes))
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.normal_(0.1, 0.3)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Trained:
    """An adapter of peft with random values, and its base, on disk and in memory.

    Attributes:
      base: The base's folder, float32.
      adapter: The adapter's.
      model: peft's own model of the two.
      logits: What it says of `IDS`.
    """

    base: Path
    adapter: Path
    model: peft.PeftModel
    logits: torch.Tensor


def train(base: Path, adapter: Path, **options: Any) -> Trained:
    """As `adapt`, with what the model says."""
    wrapped = adapt(base, adapter, **options)
    return Trained(base, adapter, wrapped, logits(wrapped))


def adapt(base: Path, adapter: Path, **options: Any) -> peft.PeftModel:
    """Wrap the model of a folder by peft, set everything trainable at random, save the adapter."""
    model = load(base)
    options = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS} | options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
            elif parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    wrapped.save_pretrained(adapter, save_embedding_layers=False)
    return wrapped


def load(folder: Path) -> transformers.PreTrainedModel:
    """Load a folder by the class that it names; every weight of the model must be in it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model, found = kind.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not found["missing_keys"], found
    assert not found["unexpected_keys"], found
    return model.eval()


def names_in(folder: Path) -> list[str]:
    """The names in a folder, hidden ones too, sorted."""
    return sorted(path.name for path in folder.iterdir())


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{family: folder of its tiny model}."""
    folder = tmp_path_factory.mktemp("bases")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(folder / family)
    return {family: folder / family for family in FAMILIES}


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
