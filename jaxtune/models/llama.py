"""Llama 2, 3, 3.1, 3.2 and 3.3.

Grouped-query attention, llama3 and linear rope scaling, tied or untied head, optional biases.

Source: transformers `models/llama/modeling_llama.py`; https://arxiv.org/abs/2407.21783.
"""

from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, NormSpec
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader, every_layer


class LlamaForCausalLM(CausalLM):
    """Llama with a language-model head."""

    family: ClassVar[str] = "llama"

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read a Llama configuration.

        Args:
          hf: transformers' dictionary form.

        Returns:
          The decoder's configuration.

        Raises:
          UnsupportedModelError: A key is missing, or asks for maths not computed here.
        """
        reader = ConfigReader(hf)
        reader.require("attention_dropout", 0.0)
        reader.require("pretraining_tp", 1)
        reader.require("rope_interleaved", False)
        head_dim = reader.head_dim()
        config = DecoderConfig(
            **reader.sizes(),
            head_dim=head_dim,
            hidden_activation=reader.activation("hidden_act"),
            norm=NormSpec(
                rms_norm_eps=reader.take("rms_norm_eps"),
                unit_offset=False,
                sandwich=False,
                qk_norm=False,
            ),
            period=every_layer(reader.rope()),
            query_scale=head_dim**-0.5,
            embedding_scale=1.0,
            attention_bias=reader.take("attention_bias"),
            mlp_bias=reader.take("mlp_bias"),
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        )
        reader.finish()
        return config
