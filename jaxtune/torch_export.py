"""A model as PyTorch users have it, in memory: transformers' module, under peft's adapter."""

import contextlib
import importlib
from typing import Any

import ml_dtypes
import numpy as np

from convert import open_checkpoint
from jaxtune.adapters.peft_form import adapter_tensors
from jaxtune.merged_tensors import base_tensors
from jaxtune.models.decoder import CausalLM
from jaxtune.models.one_host import check_on_one_host


def to_torch(model: CausalLM) -> Any:
    """Copy a model to PyTorch, on the CPU and in evaluation mode.

    Weights have the model's dtype; 4-bit ones are dequantised, to the values that training
    computes with. The adapter stays an adapter: `merge_and_unload` and `save_pretrained` are
    peft's. Needs the `torch` extra, and peft where there is an adapter.

    Args:
      model: From `from_pretrained`, at any moment of a training run.

    Returns:
      A `peft.PeftModel`; without an adapter transformers' own model.

    Raises:
      ImportError: torch, or peft, is not installed.
      ValueError: The model has no configuration.
    """
    carried = model.carried
    if carried.config_json is None:
        raise ValueError(
            "a PyTorch model needs the model's configuration; this one was built without it. Set "
            "model.carried.config_json to the transformers configuration."
        )
    torch, adapter = _package("torch"), carried.adapter
    if adapter is None:
        return transformers_model(model, np.dtype(model.dtype))
    peft = _package("peft")
    base = transformers_model(model, np.dtype(model.dtype))
    config = peft.LoraConfig(**adapter.to_json_dict())
    wrapped = peft.get_peft_model(base, config)
    tensors = {name: _tensor(torch, array) for name, array in adapter_tensors(model).items()}
    found = peft.set_peft_model_state_dict(wrapped, tensors)
    if found.unexpected_keys:
        raise ValueError(
            "every tensor of the adapter must have a place in peft's model; got "
            f"{found.unexpected_keys[:3]} without one. Report it with the adapter_config.json."
        )
    return wrapped.eval()


def transformers_model(model: CausalLM, dtype: np.dtype) -> Any:
    """Copy a model without its adapter to transformers, on the CPU and in evaluation mode.

    Args:
      model: With its configuration.
      dtype: Of its weights there.

    Returns:
      transformers' causal language model.

    Raises:
      ImportError: torch is not installed.
    """
    check_on_one_host(model, "a torch model")
    torch, carried = _package("torch"), model.carried
    import transformers

    settings = transformers.CONFIG_MAPPING[carried.hf_config["model_type"]]
    config = settings.from_dict(carried.hf_config)
    kind: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with contextlib.ExitStack() as stack:
        files = None
        if carried.folder is not None:
            files = stack.enter_context(open_checkpoint(carried.folder))
        tensors = {
            name: _tensor(torch, tensor.read())
            for name, tensor in base_tensors(model, dtype, files).items()
        }
    made = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype=getattr(torch, dtype.name)
    )
    made.config.name_or_path = made.name_or_path = carried.name_or_path  # peft writes it
    return made.eval()


def _tensor(torch: Any, array: Any) -> Any:
    """A torch tensor of a numpy array; torch does not know ml_dtypes' bfloat16."""
    array = np.array(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"to_torch needs {name}, which is not installed. Run: pip install 'jaxtune[torch]'"
        ) from error
