"""A model of one layer, drawn at random: quick to compile, and none of its choices is certain."""

from flax import nnx

from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.models.carried import Carried
from jaxtune.models.registry import find_family

VOCABULARY = 23
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "mlp_bias": False,
}


def tiny_model(**generation_config: object) -> LanguageModel:
    """The model; the same weights each time."""
    family = with_verbs(find_family("llama"))
    config = family.config_from_hf(CONFIG)
    model = family(config, rngs=nnx.Rngs(0), initializer_range=0.6)
    model.carried = Carried(hf_config=CONFIG, generation_config=generation_config)
    return model
