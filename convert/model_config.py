"""What a merge reads from the base's config.json, and what it changes in it."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from convert.errors import broken
from convert.json_object import read_json_object
from convert.quantization_config import quantization_of, without_quantization
from convert.rounding import WEIGHT_DTYPES

_DTYPE_KEYS = ("dtype", "torch_dtype")
_BY_NAME = {str(dtype): dtype for dtype in WEIGHT_DTYPES}


def read_model_config(folder: Path) -> dict[str, object]:
    """Read a base model's config.json.

    Args:
      folder: The model's folder.

    Returns:
      The JSON object.

    Raises:
      CheckpointError: no such file, no JSON object, or what `quantization_of` refuses.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise broken(
            f"A base model must be a folder with config.json in {folder}",
            got="no config.json",
            wanted="a folder that transformers' save_pretrained wrote",
            cure="Check the path, or download the model again.",
        )
    config = read_json_object(file)
    quantization_of(config)
    return config


def dtype_of(config: Mapping[str, object], stored: Collection[np.dtype] = ()) -> np.dtype:
    """Say in which dtype a merge leaves a model of this configuration.

    Args:
      config: A base's config.json.
      stored: What its 4-bit weights were before; used where the file does not name 16 bits.

    Returns:
      The base's own dtype where that has 16 bits, else bfloat16.
    """
    named = next((config[key] for key in _DTYPE_KEYS if key in config), None)
    before = next(iter(stored)) if len(set(stored)) == 1 else None
    for dtype in (_BY_NAME.get(str(named)), before):
        if dtype is not None and dtype.itemsize == 2:
            return dtype
    return _BY_NAME["bfloat16"]


def ties_embeddings(config: Mapping[str, object]) -> bool:
    """Say whether the head shares the embedding's matrix.

    Args:
      config: A base's config.json; its own key counts before that of `text_config`.

    Returns:
      What the file says; where it says nothing transformers' default, true for Gemma alone among
      the families that we merge.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if part.get("tie_word_embeddings") is not None:
            return part["tie_word_embeddings"] is True
    return str(config.get("model_type", "")).startswith("gemma")


def merged_config(
    config: Mapping[str, object], dtype: np.dtype, *, untied: bool, rows: int | None = None
) -> dict[str, object]:
    """Change a base's config.json into that of the merged model.

    Args:
      config: The base's.
      dtype: Of the merged weights, as `dtype` and in the keys of older transformers.
      untied: The merged model has a head of its own.
      rows: Of its embedding, where tokens were added to the base's; else None.

    Returns:
      A new object, without `quantization_config`: merged weights have 16 or 32 bits.
    """
    merged = _with_dtype(without_quantization(config), str(dtype)) | {"dtype": str(dtype)}
    if untied:
        merged["tie_word_embeddings"] = False
        if isinstance(merged.get("text_config"), dict):
            merged["text_config"] = {**merged["text_config"], "tie_word_embeddings": False}
    if rows is not None:
        text = merged.get("text_config")
        if isinstance(text, dict):
            merged["text_config"] = {**text, "vocab_size": rows}
        else:
            merged["vocab_size"] = rows
    return merged


def _with_dtype(config: Mapping[str, object], name: str) -> dict[str, object]:
    """A copy in which every dtype that is named, in text_config and its like too, is `name`."""
    return {
        key: name
        if key in _DTYPE_KEYS
        else _with_dtype(value, name)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }
