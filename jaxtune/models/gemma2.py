"""Gemma 2.

Differs from Llama in: norms that scale by 1 + weight in float32, four norms a block, GELU (tanh),
windows on every other layer, soft-caps on attention and logits, a query scale given apart from
the head width, an embedding scaled by sqrt(D) and always tied to the head.

Source: transformers `models/gemma2/modeling_gemma2.py`; https://arxiv.org/abs/2408.00118.
"""

import math
from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, LayerSpec, NormSpec
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader, layer_types


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
        rope = reader.rope()
        config = DecoderConfig(
            **reader.sizes(),
            head_dim=reader.take("head_dim"),
            hidden_activation=reader.activation("hidden_activation"),
            norm=NormSpec(
                rms_norm_eps=reader.take("rms_norm_eps"),
                unit_offset=True,
                sandwich=True,
                qk_norm=False,
            ),
            period=layer_types(
                reader,
                sliding=LayerSpec(window=reader.take("sliding_window"), rope=rope),
                full=LayerSpec(window=None, rope=rope),
            ),
            query_scale=reader.take("query_pre_attn_scalar") ** -0.5,
            embedding_scale=math.sqrt(reader.take("hidden_size")),
            attention_bias=reader.take("attention_bias"),
            mlp_bias=False,
            attn_logit_softcapping=reader.optional("attn_logit_softcapping"),
            final_logit_softcapping=reader.optional("final_logit_softcapping"),
        )
        reader.finish()
        return config
