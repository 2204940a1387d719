"""Gemma 2.

Differs from Llama in: norms that scale by 1 + weight in float32, four norms a block, GELU (tanh),
windows on every other layer, soft-caps on attention and logits, a query scale given apart from
the head width, an embedding scaled by sqrt(D) and always tied to the head.

Source: transformers `models/gemma2/modeling_gemma2.py`; https://arxiv.org/abs/2408.00118.
"""

import math
from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, LayerSpec, NormSpec, RopeSpec
from jaxtune.errors import UnsupportedModelError
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader


class Gemma2ForCausalLM(CausalLM):
    """Gemma 2 with a language-model head."""

    family: ClassVar[str] = "gemma2"

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read a Gemma 2 configuration.

        Args:
          hf: transformers' dictionary form.

        Returns:
          The decoder's configuration.

        Raises:
          UnsupportedModelError: A key is missing, or asks for maths not computed here.
        """
        reader = ConfigReader(hf)
        reader.require("attention_dropout", 0.0)
        reader.require("use_bidirectional_attention", False)
        # Old copies of the window and of the activation; `sliding_window` and
        # `hidden_activation` are what transformers reads.
        reader.optional("sliding_window_size")
        reader.optional("hidden_act")
        width = reader.take("hidden_size")
        config = DecoderConfig(
            vocab_size=reader.take("vocab_size"),
            hidden_size=width,
            intermediate_size=reader.take("intermediate_size"),
            num_hidden_layers=reader.take("num_hidden_layers"),
            num_attention_heads=reader.take("num_attention_heads"),
            num_key_value_heads=reader.take("num_key_value_heads"),
            head_dim=reader.take("head_dim"),
            hidden_activation=reader.activation("hidden_activation"),
            max_position_embeddings=reader.take("max_position_embeddings"),
            tie_word_embeddings=reader.take("tie_word_embeddings"),
            norm=NormSpec(
                rms_norm_eps=reader.take("rms_norm_eps"), unit_offset=True, sandwich=True
            ),
            period=_period(reader),
            query_scale=reader.take("query_pre_attn_scalar") ** -0.5,
            embedding_scale=math.sqrt(width),
            attention_bias=reader.take("attention_bias"),
            mlp_bias=False,
            attn_logit_softcapping=reader.optional("attn_logit_softcapping"),
            final_logit_softcapping=reader.optional("final_logit_softcapping"),
        )
        reader.finish()
        return config


def _period(reader: ConfigReader) -> tuple[LayerSpec, ...]:
    """The shortest pattern of windows that `layer_types` repeats."""
    kinds = tuple(reader.take("layer_types"))
    layers = reader.take("num_hidden_layers")
    known = {"sliding_attention", "full_attention"}
    if len(kinds) != layers or not known.issuperset(kinds):
        raise UnsupportedModelError(
            f"`layer_types` must name {layers} layers out of {sorted(known)}; got {kinds}."
        )
    rope: RopeSpec = reader.rope()
    local = LayerSpec(window=reader.take("sliding_window"), rope=rope)
    everything = LayerSpec(window=None, rope=rope)
    specs = tuple(local if kind == "sliding_attention" else everything for kind in kinds)
    return next(
        specs[:size]
        for size in range(1, layers + 1)
        if all(spec == specs[i % size] for i, spec in enumerate(specs))
    )
