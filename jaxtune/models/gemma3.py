"""Gemma 3: the text models, and the text part of the multimodal ones.

Differs from Gemma 2 in: q/k norms, no soft-cap on attention, five windowed layers to one that sees
everything, and a rotary base (and scaling) of its own for each of the two kinds.

Source: transformers `models/gemma3/modeling_gemma3.py`; https://arxiv.org/abs/2503.19786.
"""

import math
from typing import Any, ClassVar

from jaxtune.config import DecoderConfig, LayerSpec, NormSpec
from jaxtune.errors import UnsupportedModelError
from jaxtune.models.decoder import CausalLM
from jaxtune.models.hf_config import ConfigReader, layer_types


class Gemma3ForCausalLM(CausalLM):
    """Gemma 3, text, with a language-model head."""

    family: ClassVar[str] = "gemma3_text"

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read a Gemma 3 text configuration.

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
        # transformers keeps the key of Gemma 2 and never reads it here.
        reader.require("attn_logit_softcapping")
        config = DecoderConfig(
            **reader.sizes(),
            head_dim=reader.take("head_dim"),
            hidden_activation=reader.activation("hidden_activation"),
            norm=NormSpec(
                rms_norm_eps=reader.take("rms_norm_eps"),
                unit_offset=True,
                sandwich=True,
                qk_norm=True,
            ),
            period=layer_types(
                reader,
                sliding=LayerSpec(
                    window=reader.take("sliding_window"), rope=reader.rope("sliding_attention")
                ),
                full=LayerSpec(window=None, rope=reader.rope("full_attention")),
            ),
            query_scale=reader.take("query_pre_attn_scalar") ** -0.5,
            embedding_scale=math.sqrt(reader.take("hidden_size")),
            attention_bias=reader.take("attention_bias"),
            mlp_bias=False,
            attn_logit_softcapping=None,
            final_logit_softcapping=reader.optional("final_logit_softcapping"),
        )
        reader.finish()
        return config


class Gemma3ForConditionalGeneration(CausalLM):
    """The text part of a multimodal Gemma 3; its vision part is neither loaded nor computed."""

    family: ClassVar[str] = "gemma3"
    decoder_name: ClassVar[str] = "model.language_model"
    other_parts: ClassVar[tuple[str, ...]] = (
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    )

    @staticmethod
    def config_from_hf(hf: dict[str, Any]) -> DecoderConfig:
        """Read the text part of a multimodal configuration.

        Args:
          hf: transformers' dictionary form, with `text_config` and `vision_config`.

        Returns:
          The decoder's configuration.

        Raises:
          UnsupportedModelError: As for the text models; or a final soft-cap, which the multimodal
            model of transformers does not apply.
        """
        text = hf.get("text_config")
        if not isinstance(text, dict):
            raise UnsupportedModelError(
                "a multimodal configuration must have a `text_config`; got "
                f"{type(text).__name__}. Check its config.json."
            )
        if text.get("final_logit_softcapping") is not None:
            raise UnsupportedModelError(
                "`final_logit_softcapping` must be null in a multimodal Gemma 3; got "
                f"{text['final_logit_softcapping']}."
            )
        # Which of the two places rules differs between releases: they must not disagree.
        tied = {part.get("tie_word_embeddings") for part in (hf, text)} - {None}
        if len(tied) > 1:
            raise UnsupportedModelError(
                "`tie_word_embeddings` must say the same in config.json and in its `text_config`; "
                "got both true and false. Set the wrong one right."
            )
        return Gemma3ForCausalLM.config_from_hf(text)
