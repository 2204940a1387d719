"""Tiny random models of transformers and peft: the truth that ours is compared with."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.families import Variant

ALL_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Names of a vision part end like those of the decoder.
TEXT_PROJECTIONS = rf".*\.language_model\..*\.({'|'.join(ALL_PROJECTIONS)})"


@dataclasses.dataclass(frozen=True)
class Oracle:
    """A model on disk and in float64 memory.

    Attributes:
      folder: The base checkpoint, float32.
      adapter_folder: PEFT's adapter over it.
      model: The peft model over float64 weights, in evaluation mode.
    """

    folder: Path
    adapter_folder: Path
    model: PeftModel


def make_oracle(
    variant: Variant, folder: Path, *, initializer_range: float, seed: int = 0
) -> Oracle:
    """Draw every weight at random, norms, biases and LoRA B included, and save both parts.

    Norms at 1 and biases at 0 would hide cast order and Gemma's 1 + w.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        variant.model_type, **variant.configured(initializer_range=initializer_range)
    )
    base = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if "norm" in name:
                parameter.normal_(0.0 if variant.model_type.startswith("gemma") else 1.0, 0.3)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    base.save_pretrained(folder / "base")
    lora = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=TEXT_PROJECTIONS if "text_config" in variant.options else ALL_PROJECTIONS,
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
    )
    model = get_peft_model(base, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
    # The base's folder is what a loader of the adapter must find.
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return Oracle(folder / "base", folder / "adapter", model.double().eval())


def oracle_logits(oracle: Oracle, rows: np.ndarray, *, adapters: bool = True) -> np.ndarray:
    """float64 logits of rows without padding, [B, T, V]."""

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return oracle.model(input_ids=torch.tensor(rows)).logits

    if adapters:
        return forward().numpy()
    with oracle.model.disable_adapter():
        return forward().numpy()


EMBEDDING = "scaled embedding output"


def oracle_gradients(
    oracle: Oracle, rows: np.ndarray, labels: np.ndarray
) -> tuple[float, dict[str, np.ndarray]]:
    """Sum of the shifted token losses, and its gradients.

    With respect to every LoRA tensor, and (under `EMBEDDING`) to the embedding's scaled output,
    which `inputs_embeds` takes the place of.
    """
    oracle.model.zero_grad()
    ids = torch.tensor(rows)
    embeds = oracle.model.get_input_embeddings()(ids).detach().requires_grad_()
    logits = oracle.model(inputs_embeds=embeds).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        torch.tensor(labels[:, 1:]).flatten(),
        ignore_index=-100,
        reduction="sum",
    )
    loss.backward()
    gradients = {
        name.replace(".default", ""): parameter.grad.numpy().copy()
        for name, parameter in oracle.model.named_parameters()
        if "lora_" in name
    }
    return float(loss.detach()), {**gradients, EMBEDDING: embeds.grad.numpy().copy()}


def random_rows(shape: tuple[int, int], seed: int = 0, vocab_size: int = 97) -> Any:
    """Token ids, [B, T]."""
    return np.random.default_rng(seed).integers(3, vocab_size, shape).astype(np.int64)
