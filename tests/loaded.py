"""Our model from an oracle's folders."""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from convert import read_adapter
from jaxtune.adapters.attach import attach_adapter
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.models.carried import Carried
from jaxtune.models.configuration import hf_form, read_config_json
from jaxtune.models.loading import load_model
from jaxtune.models.registry import find_family


def load_base(folder: Path, dtype: DTypeLike = jnp.float32) -> LanguageModel:
    """The base checkpoint."""
    config_json = read_config_json(folder)
    hf_config = hf_form(config_json)
    family = with_verbs(find_family(hf_config["model_type"]))
    config = family.config_from_hf(hf_config)
    model = load_model(folder, family, config, dtype=dtype, progress=False)
    model.carried = Carried(
        name_or_path=str(folder), hf_config=hf_config, config_json=config_json, folder=folder
    )
    return model


def load_adapted(adapter_folder: Path) -> LanguageModel:
    """The adapter over its base, trainable."""
    adapter = read_adapter(adapter_folder)
    model = load_base(Path(adapter.config.base_model_name_or_path or ""))
    model.carried.adapter = attach_adapter(model, adapter)
    return model
