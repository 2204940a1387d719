import pytest

from convert.model_config import ties_embeddings


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({"model_type": "gemma3", "text_config": {"tie_word_embeddings": False}}, False),
        ({"model_type": "llama", "text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, True),
        ({"model_type": "gemma2", "tie_word_embeddings": None}, True),
        ({"model_type": "mistral"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_the_models_own_key_counts_then_its_text_configs_then_the_familys_default(config, tied):
    assert ties_embeddings(config) is tied
