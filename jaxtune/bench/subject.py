"""What is measured: the family and configuration of a name, found without any weight."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

from convert import read_json_object
from jaxtune.bench.configs import BUILT_IN
from jaxtune.config import DecoderConfig
from jaxtune.models.configuration import hf_form, read_config_json
from jaxtune.models.decoder import CausalLM
from jaxtune.models.registry import find_family


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model by its configuration.

    Attributes:
      name: As the user gave it.
      family: Its class.
      config: Its sizes and values.
    """

    name: str
    family: type[CausalLM]
    config: DecoderConfig


def find_subject(name: str) -> Subject:
    """Read a model's configuration.

    Args:
      name: A key of `BUILT_IN`, a config.json or its folder, or a hub id.

    Returns:
      The family and the configuration.

    Raises:
      ModelNotFoundError: A hub id whose config.json is neither in reach nor cached.
      UnsupportedModelError: The configuration asks for maths not computed here.
    """
    config_json = read_config(name)
    family = find_family(config_json.get("model_type"))
    return Subject(name=name, family=family, config=family.config_from_hf(hf_form(config_json)))


def read_config(name: str) -> dict[str, Any]:
    """The config.json that a name stands for.

    Raises:
      FileNotFoundError: A folder without config.json.
      ModelNotFoundError: See `find_subject`.
    """
    if name in BUILT_IN:
        return copy.deepcopy(BUILT_IN[name])
    path = Path(name).expanduser()
    if path.is_file():
        return read_json_object(path)
    if not path.is_dir():
        # huggingface_hub takes 0.2 s to import, and the other names need none of it.
        from jaxtune.models.hub_download import download_config

        path = download_config(name)
    return read_config_json(path)


def check_length(subject: Subject, length: int, packing: bool) -> None:
    """Raise if rows of one document are longer than the model's range."""
    limit = subject.config.max_position_embeddings
    if not packing and length > limit:
        raise ValueError(
            f"--length must be <= {limit}, the range of {subject.name}; got {length}. Shorten the "
            "rows, or add --packing: a packed row's documents count their positions from 0."
        )
