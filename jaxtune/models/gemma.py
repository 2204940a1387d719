"""Gemma 1 (2B, 7B, CodeGemma).

Differs from Llama in: norms that scale by 1 + weight in float32, GELU (tanh), a head width given
apart from D / N, an embedding scaled by sqrt(D) and tied to the head.

Source: transformers `models/gemma/modeling_gemma.py`; https://arxiv.org/abs/2403.08295.
"""

import math
from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, NormSpec
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader, every_layer


class GemmaForCausalLM(CausalLM):
    """Gemma 1 with a language-model head."""

    family: ClassVar[str] = "gemma"

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read a Gemma 1 configuration.

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
        # The first releases say hidden_act="gelu" and mean its tanh form, as transformers knows.
        reader.require("hidden_act", "gelu", "gelu_pytorch_tanh")
        reader.require("hidden_activation", "gelu_pytorch_tanh")
        head_dim = reader.take("head_dim")
        config = DecoderConfig(
            **reader.sizes(),
            head_dim=head_dim,
            hidden_activation="gelu_pytorch_tanh",
            norm=NormSpec(
                rms_norm_eps=reader.take("rms_norm_eps"),
                unit_offset=True,
                sandwich=False,
                qk_norm=False,
            ),
            period=every_layer(reader.rope()),
            query_scale=head_dim**-0.5,
            embedding_scale=math.sqrt(reader.take("hidden_size")),
            attention_bias=reader.take("attention_bias"),
            mlp_bias=False,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        )
        reader.finish()
        return config
