"""config.json: read, its position range stretched where asked, and in transformers' own form."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.json_object import read_json_object
from jaxtune.errors import UnsupportedModelError


def read_config_json(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder, as it stands there.

    Raises:
      FileNotFoundError: There is none.
      CheckpointError: It is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"a model folder must hold config.json; {folder} has none. "
            "Check the path, or pass a hub id."
        )
    return read_json_object(file)


def hf_form(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers makes of a config.json: new spellings, its defaults filled in.

    Args:
      config_json: Of a `model_type` that this library knows.

    Returns:
      `PretrainedConfig.to_dict()`.

    Raises:
      UnsupportedModelError: transformers refuses the values.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config_json["model_type"]
    try:
        return CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(config_json))).to_dict()
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(
            f"config.json must be a `{kind}` configuration that transformers reads; it says: "
            f"{type(error).__name__}: {error}. Check the file."
        ) from error


def read_hf_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json in transformers' dictionary form."""
    return hf_form(read_config_json(folder))


def with_rope_scaling(config_json: dict[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config.json with another rope scaling, in the file's own spelling.

    The base (`rope_theta`) stays. Where the kinds of layers have rotary embeddings of their own,
    only the layers that see everything are scaled: a windowed layer never sees a distance that
    it was not trained on.

    Args:
      config_json: As read; not changed.
      scaling: As in config.json: {"rope_type": "linear", "factor": 2.0}.

    Returns:
      The new configuration.
    """
    changed = copy.deepcopy(config_json)
    text = text_part(changed)
    numbers = dict(scaling)
    numbers["rope_type"] = numbers.pop("rope_type", None) or numbers.pop("type", "default")
    numbers.pop("type", None)
    held = text.get("rope_parameters")
    if held is None:
        text["rope_scaling"] = numbers
        return changed
    place = held.get("full_attention", held)
    theta = {key: value for key, value in place.items() if key == "rope_theta"}
    place.clear()
    place.update({**theta, **numbers})
    return changed


def stretched(
    config_json: dict[str, Any], hf: Mapping[str, Any], max_seq_length: int
) -> tuple[dict[str, Any], str]:
    """A copy of a config.json whose position range reaches `max_seq_length`.

    Plain RoPE becomes linear with factor = max_seq_length / range; a linear factor f becomes
    f * max_seq_length / range; llama3 scaling keeps its numbers and only its range grows.

    Args:
      config_json: As read; not changed.
      hf: Its transformers form.
      max_seq_length: Tokens, more than the range.

    Returns:
      (the new configuration, what was done, for the user).
    """
    text = text_part(hf)
    model_range = text["max_position_embeddings"]
    rope = text["rope_parameters"]
    rope = rope.get("full_attention", rope)
    kind, factor = rope.get("rope_type", "default"), max_seq_length / model_range
    done, changed = f"its {kind} RoPE scaling kept", config_json
    if kind in ("default", "linear"):
        factor *= rope.get("factor") or 1.0
        changed = with_rope_scaling(config_json, {"rope_type": "linear", "factor": factor})
        done = f"linear RoPE scaling by {factor:g}"
    return with_range(changed, max_seq_length), (
        f"jaxtune: the model's range of {model_range:,} tokens is stretched to "
        f"{max_seq_length:,}, {done}. Load the base the same way wherever the adapter is used."
    )


def with_range(config_json: dict[str, Any], tokens: int) -> dict[str, Any]:
    """A copy of a config.json with another position range."""
    changed = copy.deepcopy(config_json)
    text_part(changed)["max_position_embeddings"] = tokens
    return changed


def text_part(config: Any) -> Any:
    """The part of a configuration that describes the decoder; all of it in a text model's."""
    return config.get("text_config") or config


def described_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's keys that differ between two configurations, with their new values."""
    old, new = text_part(before), text_part(after)
    return {
        key: json.loads(json.dumps(value)) for key, value in new.items() if old.get(key) != value
    }
