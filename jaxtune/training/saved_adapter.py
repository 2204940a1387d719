"""The adapter of a checkpoint, for a model that has one already."""

from pathlib import Path

import numpy as np
from flax import nnx

from convert import AdapterConfig, open_adapter
from jaxtune.adapters.modules import projections
from jaxtune.adapters.peft_form import peft_names
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.language_model import LanguageModel
from jaxtune.models.naming import STACK, name_pattern


def read_matching_adapter(
    folder: Path, model: LanguageModel, trainable: nnx.State
) -> dict[str, np.ndarray]:
    """Read the tensors of an adapter that has the form of the model's own.

    Args:
      folder: Holds PEFT's files.
      model: With an adapter; not changed.
      trainable: Its trained arrays.

    Returns:
      The tensors by PEFT's names.

    Raises:
      CheckpointError: A file is missing or damaged.
      IncompatibleCheckpointError: Other tensors, shapes or scales than the model's.
    """
    wanted = {name: tuple(leaf.shape) for name, leaf in peft_names(trainable).items()}
    config, checkpoint = open_adapter(folder)
    with checkpoint:
        found = {name: tuple(checkpoint.info(name).shape) for name in checkpoint.names}
        if found != wanted:
            name = min(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
            raise _other(folder, f"{_shape(found, name)} for `{name}`", f"{_shape(wanted, name)}")
        _check_scales(folder, model, config)
        return {name: checkpoint.read(name) for name in wanted}


def _check_scales(folder: Path, model: LanguageModel, config: AdapterConfig) -> None:
    """Raise where alpha and rank make another factor than the model's."""
    for path, linear in projections(model).items():
        spec = linear.lora
        if spec is None:
            continue
        pattern = name_pattern((*STACK, *path.split(".")), model.decoder_name)
        for layer, (rank, scale) in enumerate(zip(spec.ranks, spec.scales, strict=True)):
            name = pattern.format(layer)
            saved = config.scale_for(name, rank) if rank else scale
            if saved != scale:
                raise _other(folder, f"a scale of {saved} for `{name}`", f"{scale}")


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return f"shape {shapes[name]}" if name in shapes else "no tensor"


def _other(folder: Path, got: str, wanted: str) -> IncompatibleCheckpointError:
    return IncompatibleCheckpointError(
        f"a run must resume with the adapter that its checkpoint holds; got {got} in {folder}; "
        f"wanted {wanted}, as the model has it. Call get_peft_model with the options of the saved "
        "run (adapter_config.json), or load the model from the checkpoint's folder."
    )
