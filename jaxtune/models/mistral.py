"""Mistral 7B (v0.1 to v0.3), Nemo and Small: the text models of `model_type` "mistral".

Differs from Llama in: a window on every layer (v0.1) and a head width that may be given apart
from D / N (Nemo).

Source: transformers `models/mistral/modeling_mistral.py`; https://arxiv.org/abs/2310.06825.
"""

from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, NormSpec
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader, every_layer


class MistralForCausalLM(CausalLM):
    """Mistral with a language-model head."""

    family: ClassVar[str] = "mistral"

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read a Mistral configuration.

        Args:
          hf: transformers' dictionary form.

        Returns:
          The decoder's configuration.

        Raises:
          UnsupportedModelError: A key is missing, or asks for maths not computed here.
        """
        reader = ConfigReader(hf)
        reader.require("attention_dropout", 0.0)
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
            period=every_layer(reader.rope(), window=reader.optional("sliding_window")),
            query_scale=head_dim**-0.5,
            embedding_scale=1.0,
            attention_bias=False,
            mlp_bias=False,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        )
        reader.finish()
        return config
