"""What a GGUF file says of a model: llama.cpp's keys from a Hugging Face configuration.

llama.cpp knows a few architectures, and computes each in one way. A configuration that asks for
maths which its architecture there does not do is refused: the file would load, and be wrong.

Source: https://github.com/ggml-org/llama.cpp `convert_hf_to_gguf.py` (`TextModel`, `LlamaModel`,
  `Gemma*Model`, `Qwen3Model`), `src/models/{llama,gemma,gemma2,gemma3,qwen3}.cpp`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.errors import CheckpointError, broken, shown


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp computes a family.

    Attributes:
      name: llama.cpp's.
      permutes: Rows of q and k stand in pairs (2i, 2i + 1), not in halves (i, i + H/2).
      norm_shift: Added to norms: 1 where the family computes 1 + w.
      own_head: It may have a head apart from the embedding.
      biases: Its projections may have biases.
      scales_llama3: It reads llama3's RoPE factors.
      period: Layers of which the last sees everything and the others a window; None: no windows.
      large: Number of layers of the one size whose query scale is (D / N)^-1/2, not H^-1/2.
    """

    name: str
    permutes: bool = False
    norm_shift: float = 0.0
    own_head: bool = True
    biases: bool = False
    scales_llama3: bool = False
    period: int | None = None
    large: int | None = None


_LLAMA = Architecture(name="llama", permutes=True, biases=True, scales_llama3=True)
_GEMMA3 = Architecture(name="gemma3", norm_shift=1.0, period=6, large=62)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gemma": Architecture(name="gemma", norm_shift=1.0, own_head=False),
    "gemma2": Architecture(name="gemma2", norm_shift=1.0, own_head=False, period=2, large=46),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "qwen3": Architecture(name="qwen3"),
}
# GGUF's name -> Hugging Face's, of what stands in both as it is.
_SAME = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "head_count": "num_attention_heads",
    "head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "layer_norm_rms_eps": "rms_norm_eps",
}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the decoder.

    Args:
      config: config.json, or its transformers form.

    Returns:
      Its `text_config`, or itself.
    """
    part = config.get("text_config")
    return part if isinstance(part, Mapping) else config


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Which of llama.cpp's architectures a model is.

    Args:
      config: config.json, or its transformers form.

    Returns:
      The architecture.

    Raises:
      CheckpointError: llama.cpp's maths of it is unknown here.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise broken(
            "A GGUF file must be of a family whose form there is known",
            got=f"model_type {shown(kind)}",
            wanted=f"one of {', '.join(ARCHITECTURES)}",
            cure="Write a merged folder, and run llama.cpp's convert_hf_to_gguf.py on it.",
        )
    return ARCHITECTURES[str(kind)]


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a model by the names of `GGUFWriter`'s methods, without their `add_`.

    Args:
      config: config.json, or its transformers form.

    Returns:
      {"block_count": 16, "context_length": 131072, ...}.

    Raises:
      CheckpointError: a value is missing, or asks for what llama.cpp does not compute.
    """
    kind, text = architecture_of(config), text_config(config)
    values = {name: _held(text, key) for name, key in _SAME.items()}
    width = head_width(text)
    values |= {"key_length": width, "value_length": width, "rope_dimension_count": width}
    rope, local = ropes(text)
    values["rope_freq_base"] = _number(rope, "rope_theta")
    scaling = rope.get("rope_type", "default")
    if scaling == "linear":
        values |= {"rope_scaling_type": "linear", "rope_scaling_factor": _number(rope, "factor")}
    elif (scaling == "llama3" and not kind.scales_llama3) or scaling not in ("default", "llama3"):
        raise unserved(kind, f"{scaling} scaling of RoPE")
    if local is not None:
        if local.get("rope_type", "default") != "default":
            raise unserved(kind, "a scaled RoPE of its windowed layers")
        values["rope_freq_base_swa"] = _number(local, "rope_theta")
    if kind.period is not None:
        values["sliding_window"] = _held(text, "sliding_window")
    if kind.name == "gemma2":
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            values[key] = _held(text, key)
    _check(kind, text, width)
    return values


def window_note(config: Mapping[str, Any]) -> str | None:
    """What to say of a window that llama.cpp does not know; None where there is none.

    Args:
      config: config.json, or its transformers form.

    Returns:
      The note.
    """
    kind, text = architecture_of(config), text_config(config)
    window = text.get("sliding_window")
    if kind.period is not None or window is None or text.get("use_sliding_window") is False:
        return None
    return (
        f"llama.cpp computes {kind.name} models without windows: beyond {window} tokens its "
        "results are not those of the training"
    )


def head_width(text: Mapping[str, Any]) -> int:
    """H, the width of one head.

    Args:
      text: The decoder's configuration.

    Returns:
      `head_dim`, or D / N.
    """
    if text.get("head_dim") is not None:
        return _held(text, "head_dim")
    return _held(text, "hidden_size") // _held(text, "num_attention_heads")


def ropes(text: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The rotary embeddings of a decoder, in the spelling of new configurations.

    Args:
      text: Its configuration, in either spelling.

    Returns:
      (of layers that see everything, of windowed layers or None where they have the same).
    """
    new = text.get("rope_parameters")
    if isinstance(new, Mapping):
        full = new.get("full_attention")
        return (full, new.get("sliding_attention")) if isinstance(full, Mapping) else (new, None)
    old = text.get("rope_scaling") or {}
    scaling = old.get("rope_type", old.get("type", "default"))
    # Files of before the key existed mean 10000; Gemma 3 was never without.
    usual = None if str(text.get("model_type", "")).startswith("gemma3") else 10000.0
    full = {"rope_theta": text.get("rope_theta", usual), **old, "rope_type": scaling}
    theta = text.get("rope_local_base_freq")
    return full, None if theta is None else {"rope_theta": theta}


def rope_factors(config: Mapping[str, Any]) -> np.ndarray | None:
    """What llama.cpp divides each frequency by for llama3's scaling of RoPE.

    With wavelength w, range n, low and high factors l and h: 1 where w < n / h, `factor` where
    w > n / l, and between them 1 / ((1 - t) / factor + t) with t = (n / w - l) / (h - l).

    Args:
      config: config.json, or its transformers form.

    Returns:
      float32 [H / 2]; None with another scaling.
    """
    text = text_config(config)
    rope, _ = ropes(text)
    if rope.get("rope_type") != "llama3":
        return None
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, context = (_number(rope, key) for key in keys)
    width = head_width(text)
    places = np.arange(0, width, 2, dtype=np.float64) / width
    waves = 2 * math.pi * np.float64(_number(rope, "rope_theta")) ** places
    share = np.clip((context / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


def _check(kind: Architecture, text: Mapping[str, Any], width: int) -> None:
    """Refuse what this architecture's code in llama.cpp does not do."""
    layers = _held(text, "num_hidden_layers")
    if not kind.biases and (text.get("attention_bias") or text.get("mlp_bias")):
        raise unserved(kind, "biases of projections")
    if kind.period is not None:
        kinds = text.get("layer_types") or []
        places = [(i + 1) % kind.period == 0 for i in range(layers)]
        if kinds and [name == "full_attention" for name in kinds] != places:
            raise unserved(kind, f"windows elsewhere than in all but each {kind.period}th layer")
        wanted = width
        if layers == kind.large:
            wanted = _held(text, "hidden_size") // _held(text, "num_attention_heads")
        if text.get("query_pre_attn_scalar", wanted) != wanted:
            raise unserved(kind, f"query_pre_attn_scalar {text['query_pre_attn_scalar']}")
    if kind.name == "gemma3" and text.get("final_logit_softcapping") is not None:
        raise unserved(kind, "a soft-cap of the logits")
    if not kind.norm_shift and text.get("hidden_act", "silu") != "silu":
        raise unserved(kind, f"the activation {shown(text['hidden_act'])}")


def unserved(kind: Architecture, what: str) -> CheckpointError:
    """Build the error for maths that llama.cpp does not do.

    Args:
      kind: The architecture.
      what: What the configuration asks for.

    Returns:
      The exception, not yet raised.
    """
    return broken(
        f"A GGUF file must ask for what llama.cpp computes of {kind.name} models",
        got=what,
        wanted="a model without it",
        cure="Use the merged folder with transformers or vLLM instead.",
    )


def _held(text: Mapping[str, Any], key: str) -> Any:
    """A value that the configuration must say."""
    if text.get(key) is None:
        raise broken(
            f"A GGUF file needs `{key}` of the model's configuration",
            got=shown(text.get(key)),
            wanted="a value; older files leave some to transformers' defaults",
            cure="Write it into config.json: AutoConfig.from_pretrained(folder).to_dict() has it.",
        )
    return text[key]


def _number(rope: Mapping[str, Any], key: str) -> float:
    return float(_held(rope, key))
