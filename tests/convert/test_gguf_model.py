"""llama.cpp's keys of a configuration, and what its code would not compute."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from convert.errors import CheckpointError
from convert.gguf_model import parameters, rope_factors, window_note

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "rms_norm_eps": 1e-5,
}
GEMMA2 = {
    **LLAMA,
    "model_type": "gemma2",
    "head_dim": 12,
    "query_pre_attn_scalar": 12,
    "sliding_window": 5,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3 = {**GEMMA2, "model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4}
GEMMA3["final_logit_softcapping"] = None


def test_both_spellings_of_rope_say_the_same():
    old = {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    new = {**LLAMA, "rope_parameters": rope}
    values = parameters(old)
    assert values == parameters(new)
    assert values["rope_freq_base"] == 500.0
    assert (values["rope_scaling_type"], values["rope_scaling_factor"]) == ("linear", 4.0)
    assert values["rope_dimension_count"] == values["key_length"] == 8
    assert parameters(LLAMA)["rope_freq_base"] == 10000.0


def test_gemmas_have_their_windows_caps_and_second_rope():
    values = parameters(GEMMA2)
    assert values["sliding_window"] == 5
    assert values["attn_logit_softcapping"] == 50.0
    assert values["final_logit_softcapping"] == 30.0
    values = parameters({"model_type": "gemma3", "text_config": GEMMA3})
    assert (values["rope_freq_base"], values["rope_freq_base_swa"]) == (1e6, 1e4)


def test_every_real_configuration_is_served(assets):
    """As the files spell them, and as transformers does."""
    for file in sorted((assets / "configs").glob("*/config.json")):
        config = json.loads(file.read_text())
        theirs = AutoConfig.from_pretrained(file.parent).to_dict()
        assert parameters(config) == parameters(theirs), file
        assert np.array_equal(rope_factors(config), rope_factors(theirs)), file


def test_llama3_factors_are_those_of_transformers(assets):
    folder = assets / "configs" / "Llama-3.2-1B"
    config = AutoConfig.from_pretrained(folder)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, 64, 2).double() / 64)
    factors = rope_factors(json.loads((folder / "config.json").read_text()))
    np.testing.assert_allclose(factors, plain.numpy() / scaled.double().numpy(), rtol=1e-6)
    assert factors[0] == 1
    assert factors[-1] == 32
    assert len(set(factors.tolist())) > 4
    assert rope_factors(LLAMA) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "model_type": "phi"}, "model_type 'phi'"),
        ({k: v for k, v in LLAMA.items() if k != "rms_norm_eps"}, "needs `rms_norm_eps`"),
        ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn scaling"),
        ({**GEMMA2, "rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "llama3 scaling"),
        ({**LLAMA, "hidden_act": "relu"}, "the activation 'relu'"),
        ({**LLAMA, "model_type": "qwen3", "attention_bias": True}, "biases of projections"),
        ({**GEMMA2, "query_pre_attn_scalar": 20}, "query_pre_attn_scalar 20"),
        ({**GEMMA2, "attn_logit_softcapping": None}, "needs `attn_logit_softcapping`"),
        ({**GEMMA2, "layer_types": ["full_attention"] * 2}, "windows elsewhere"),
        ({**GEMMA3, "final_logit_softcapping": 3.0}, "a soft-cap of the logits"),
        (
            {
                **GEMMA3,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {
                        "rope_type": "linear",
                        "rope_theta": 1e4,
                        "factor": 2.0,
                    },
                },
            },
            "a scaled RoPE of its windowed layers",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        parameters(config)


def test_a_window_that_llama_cpp_does_not_know_is_told():
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 6}
    assert "beyond 6 tokens" in (window_note(mistral) or "")
    assert window_note({**mistral, "sliding_window": None}) is None
    assert window_note(GEMMA2) is None
    qwen = {**LLAMA, "model_type": "qwen3", "sliding_window": 6, "use_sliding_window": False}
    assert window_note(qwen) is None
