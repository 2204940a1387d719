"""Qwen3, dense.

Differs from Llama in: q/k norms in Llama's form, a head width given apart from D / N, and a window
that some configurations switch on for their last layers.

Source: transformers `models/qwen3/modeling_qwen3.py`; https://arxiv.org/abs/2505.09388.
"""

from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, LayerSpec, NormSpec
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader, layer_types


class Qwen3ForCausalLM(CausalLM):
    """Qwen3 with a language-model head."""

    family: ClassVar[str] = "qwen3"

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read a Qwen3 configuration.

        Args:
          hf: transformers' dictionary form.

        Returns:
          The decoder's configuration.

        Raises:
          UnsupportedModelError: A key is missing, or asks for maths not computed here.
        """
        reader = ConfigReader(hf)
        reader.require("attention_dropout", 0.0)
        # transformers has turned these into `layer_types`.
        reader.optional("use_sliding_window")
        reader.optional("max_window_layers")
        head_dim, rope = reader.take("head_dim"), reader.rope()
        config = DecoderConfig(
            **reader.sizes(),
            head_dim=head_dim,
            hidden_activation=reader.activation("hidden_act"),
            norm=NormSpec(
                rms_norm_eps=reader.take("rms_norm_eps"),
                unit_offset=False,
                sandwich=False,
                qk_norm=True,
            ),
            period=layer_types(
                reader,
                sliding=LayerSpec(window=reader.optional("sliding_window"), rope=rope),
                full=LayerSpec(window=None, rope=rope),
            ),
            query_scale=head_dim**-0.5,
            embedding_scale=1.0,
            attention_bias=reader.take("attention_bias"),
            mlp_bias=False,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
        )
        reader.finish()
        return config
