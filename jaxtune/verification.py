"""A saved folder read back by others' code, and how far its logits are from the model's."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from convert import quantization_of, read_adapter, without_quantization
from jaxtune.adapters.attach import attach_adapter
from jaxtune.adapters.modules import linear_places
from jaxtune.console import say_above_bars
from jaxtune.model_card import Measured, write_card, write_merged_card
from jaxtune.models.configuration import hf_form, read_config_json
from jaxtune.models.decoder import CausalLM
from jaxtune.models.loading import load_model
from jaxtune.torch_export import transformers_model
from pallas_kernels.nf4 import is_stack

ADAPTER_FILE = "adapter_config.json"
_ROWS, _TOKENS, _LARGE = 2, 32, 0.05


def verify_saved(model: CausalLM, folder: Path) -> Measured:
    """Load what was saved, compare the logits of random tokens with the model's, and say so.

    An adapter is read by peft, over transformers' model of the base's weights in memory; a merged
    model by transformers, in float32. Where torch or peft is not installed, and for 4-bit models,
    it is read by jaxtune, from the files alone.

    Args:
      model: What was saved.
      folder: Where.

    Returns:
      The difference, which is also printed, and written into the folder's card.
    """
    length = min(_TOKENS, model.config.max_position_embeddings)
    shape = (_ROWS, length)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, shape)
    expected = np.asarray(model(ids.astype(np.int32)), np.float64)
    if (folder / ADAPTER_FILE).is_file():
        reader, actual = _adapter_logits(model, folder, ids)
    else:
        reader, actual = _model_logits(model, folder, ids)
    found = Measured(
        reader=reader,
        difference=float(np.abs(actual - expected).max() / np.abs(expected).max()),
        agreement=float((actual.argmax(-1) == expected.argmax(-1)).mean()),
    )
    note = "" if found.difference <= _LARGE else ": more than rounding to 16 bits explains"
    say_above_bars(f"jaxtune: {folder}: {found.line()}{note}.")
    if (folder / ADAPTER_FILE).is_file():
        write_card(model, folder, found)
    else:
        write_merged_card(model, folder, read_config_json(folder), found)
    return found


def _adapter_logits(model: CausalLM, folder: Path, ids: np.ndarray) -> tuple[str, np.ndarray]:
    if _installed("torch") and _installed("peft"):
        import peft

        base = transformers_model(model, np.dtype(np.float32))
        return "peft", _torch_logits(peft.PeftModel.from_pretrained(base, folder), ids)
    base = _base(model)
    attach_adapter(base, read_adapter(folder))
    return "jaxtune", _logits(base, ids)


def _model_logits(model: CausalLM, folder: Path, ids: np.ndarray) -> tuple[str, np.ndarray]:
    config_json = read_config_json(folder)
    in_4bit = quantization_of(config_json) is not None
    if _installed("torch") and not in_4bit:
        import torch
        import transformers

        kind = transformers.AutoModelForCausalLM
        return "transformers", _torch_logits(kind.from_pretrained(folder, dtype=torch.float32), ids)
    config = type(model).config_from_hf(hf_form(without_quantization(config_json)))
    merged = load_model(
        folder, type(model), config, dtype=model.dtype, load_in_4bit=in_4bit, progress=False
    )
    return "jaxtune", _logits(merged, ids)


def _torch_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits.double().numpy()


def _logits(model: CausalLM, ids: np.ndarray) -> np.ndarray:
    return np.asarray(model(ids.astype(np.int32)), np.float64)


def _base(model: CausalLM) -> CausalLM:
    """The base, read again from its files as the model read it."""
    carried = model.carried
    if carried.folder is None:
        raise ValueError(
            "an adapter is verified over its base; this model has no files, and torch with peft is "
            "not installed. Run: pip install 'jaxtune[torch]'."
        )
    config = type(model).config_from_hf(carried.hf_config)
    in_4bit = any(is_stack(place.module.weight.get_value()) for place in linear_places(model))
    return load_model(
        carried.folder,
        type(model),
        config,
        dtype=model.dtype,
        load_in_4bit=in_4bit,
        progress=False,
    )


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
