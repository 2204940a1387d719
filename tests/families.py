"""One row per variant of a family: the tiny transformers configuration that shows it."""

import dataclasses
from typing import Any

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


# Seven layers: five windowed ones to one that sees everything, and a tail of one.
GEMMA3 = {
    **SMALL,
    "num_hidden_layers": 7,
    "head_dim": 12,
    "sliding_window": 5,
    "query_pre_attn_scalar": 20,
    "final_logit_softcapping": 3.0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    },
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A tiny configuration.

    Attributes:
      name: Of the test row.
      model_type: Of transformers.
      options: Keyword arguments of transformers' configuration class.
    """

    name: str
    model_type: str
    options: dict[str, Any]

    def configured(self, **values: Any) -> dict[str, Any]:
        """The options with more values of the decoder."""
        if "text_config" not in self.options:
            return {**self.options, **values}
        return {**self.options, "text_config": {**self.options["text_config"], **values}}


VARIANTS = [
    Variant("llama-untied", "llama", {**SMALL, "tie_word_embeddings": False}),
    Variant(
        "llama-tied-llama3-rope",
        "llama",
        {
            **SMALL,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Variant(
        "llama-biases-linear-rope",
        "llama",
        {
            **SMALL,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 12,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5},
        },
    ),
    Variant(
        "gemma2-five-layers",
        "gemma2",
        {
            **SMALL,
            "num_hidden_layers": 5,
            "head_dim": 12,
            "sliding_window": 7,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Variant(
        "gemma2-even-no-caps",
        "gemma2",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    Variant(
        "mistral-windowed-wide-heads",
        "mistral",
        {**SMALL, "head_dim": 12, "sliding_window": 6, "tie_word_embeddings": False},
    ),
    Variant("mistral-no-window", "mistral", {**SMALL, "sliding_window": None}),
    Variant("gemma-one-kv-head", "gemma", {**SMALL, "head_dim": 12, "num_key_value_heads": 1}),
    Variant("gemma3-tail-two-ropes", "gemma3_text", GEMMA3),
    Variant(
        "gemma3-multimodal",
        "gemma3",
        {
            "text_config": {
                **GEMMA3,
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "final_logit_softcapping": None,
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 20,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "image_token_index": 2,
            "mm_tokens_per_image": 4,
        },
    ),
    Variant(
        "qwen3-last-layers-windowed",
        "qwen3",
        {
            **SMALL,
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 2,
        },
    ),
]
BY_NAME = {variant.name: number for number, variant in enumerate(VARIANTS)}
