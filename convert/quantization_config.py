"""`quantization_config` of config.json: that of 4-bit weights of bitsandbytes, read and written.

Source: https://github.com/huggingface/transformers `utils/quantization_config.py` @ v5.24
(`BitsAndBytesConfig`, its defaults).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.errors import CheckpointError, broken, shown
from convert.quant_state import QUANT_TYPES

QUANTIZATION_KEY = "quantization_config"
# The second is what compressed-tensors wrote first.
_KEYS = (QUANTIZATION_KEY, "compression_config")
_METHOD = "bitsandbytes"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How a model's linear layers were quantised by bitsandbytes to 4 bits.

    Attributes:
      quant_type: "nf4" or "fp4".
      double_quant: The scales are quantised too.
      skip_modules: Names, or parts of names, of the modules that were left as they were; empty
        where the file names none, whose head is left all the same. The tensors themselves say
        which weights have 4 bits.
    """

    quant_type: str
    double_quant: bool
    skip_modules: tuple[str, ...]


def quantization_of(config: Mapping[str, object]) -> Quantization | None:
    """Read how a model was quantised.

    Args:
      config: A config.json; that of a multimodal model may say it in its `text_config`.

    Returns:
      None for a model that was not.

    Raises:
      CheckpointError: LLM.int8, GPTQ, AWQ, fp8 or anything else than 4 bits of bitsandbytes.
    """
    text = config.get("text_config")
    places = (config, text if isinstance(text, dict) else {})
    found = [place[key] for place in places for key in _KEYS if place.get(key) is not None]
    parsed = [_bitsandbytes(values) for values in found]
    return parsed[0] if parsed else None


def with_quantization(
    config: Mapping[str, object], quantization: Quantization, compute_dtype: np.dtype
) -> dict[str, object]:
    """Copy a config.json with what transformers writes of a model of 4-bit weights.

    Args:
      config: Of the same model with dense weights.
      quantization: How its linear layers are quantised.
      compute_dtype: That transformers multiplies in.

    Returns:
      The configuration with a `quantization_config`; the codes are stored as uint8.
    """
    values = {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": str(compute_dtype),
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": quantization.quant_type,
        "bnb_4bit_use_double_quant": quantization.double_quant,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(quantization.skip_modules),
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": _METHOD,
    }
    return {**config, QUANTIZATION_KEY: values}


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a config.json without what it says of quantisation, at every level.

    Args:
      config: The object.

    Returns:
      The configuration of the same model with dense weights.
    """
    return {
        key: without_quantization(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _KEYS
    }


def _bitsandbytes(values: object) -> Quantization:
    """Read one quantization_config."""
    if not isinstance(values, dict):
        raise _unserved(shown(values))
    method = values.get("quant_method", _METHOD)
    if method != _METHOD:
        raise _unserved(f"quant_method {shown(method)}")
    if _is_set(values, "load_in_8bit"):
        raise _unserved("load_in_8bit: 8 bits of bitsandbytes, LLM.int8")
    if not _is_set(values, "load_in_4bit"):
        raise _unserved(shown(values))
    quant_type = values.get("bnb_4bit_quant_type", "fp4")
    double_quant = values.get("bnb_4bit_use_double_quant", False)
    skipped = values.get("llm_int8_skip_modules")
    skipped = [] if skipped is None else skipped
    if quant_type not in QUANT_TYPES:
        raise _unserved(f"bnb_4bit_quant_type {shown(quant_type)}")
    if type(double_quant) is not bool:
        raise _unserved(f"bnb_4bit_use_double_quant {shown(double_quant)}")
    if not isinstance(skipped, list) or not all(isinstance(name, str) for name in skipped):
        raise _unserved(f"llm_int8_skip_modules {shown(skipped)}")
    return Quantization(
        quant_type=quant_type, double_quant=double_quant, skip_modules=tuple(skipped)
    )


def _is_set(values: Mapping[str, object], key: str) -> bool:
    """Whether a switch, which transformers writes with and without an underscore, is on."""
    return bool(values.get(key)) or bool(values.get(f"_{key}"))


def _unserved(got: str) -> CheckpointError:
    """Build the error for a quantisation that we do not read."""
    return broken(
        f"The `{QUANTIZATION_KEY}` of config.json must be one that we can read",
        got=got,
        wanted=f"load_in_4bit of {_METHOD}, nf4 or fp4, or none",
        cure="Use the model's 16-bit folder or repository, or a bitsandbytes one, whose name ends "
        "in -bnb-4bit.",
    )
