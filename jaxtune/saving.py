"""Writing a model to files that PyTorch users load."""

from pathlib import Path

from flax import nnx

from convert import write_adapter
from jaxtune.adapters.peft_form import numpy_tensors, peft_names
from jaxtune.models.decoder import CausalLM


def save_adapter(model: CausalLM, folder: str | Path) -> None:
    """Write the adapter as `adapter_model.safetensors` and `adapter_config.json` of PEFT.

    Args:
      model: With an adapter.
      folder: Created if need be; each file replaces an old one at once, or not at all.

    Raises:
      ValueError: The model has no adapter.
    """
    if model.carried.adapter is None:
        raise ValueError(
            "there must be an adapter to save; the model has none. "
            "Call FastLanguageModel.get_peft_model(model, r=16) first."
        )
    tensors = numpy_tensors(peft_names(nnx.state(model, nnx.Param)))
    write_adapter(Path(folder), tensors, model.carried.adapter)
