import ml_dtypes
import numpy as np
import pytest

from convert.model_config import dtype_of, merged_config, ties_embeddings

F32, F16, BF16 = (np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))


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


@pytest.mark.parametrize(
    ("config", "stored", "dtype"),
    [
        ({"dtype": "float16"}, [BF16], F16),
        ({"torch_dtype": "bfloat16"}, [F16, F16], BF16),
        ({"dtype": "float32"}, [F16], F16),
        ({}, [F16, F16], F16),
        ({}, [F16, BF16], BF16),
        ({"dtype": None}, [F32], BF16),
        ({}, [], BF16),
        ({"dtype": "float8"}, [], BF16),
    ],
    ids=str,
)
def test_the_dtype_is_the_configs_then_that_of_the_quantised_weights(config, stored, dtype):
    assert dtype_of(config, stored) == dtype


def test_a_merged_model_is_not_quantised():
    config = {
        "quantization_config": {"load_in_4bit": True},
        "text_config": {"quantization_config": {}, "dtype": "float32", "hidden_size": 8},
    }
    assert merged_config(config, F16, untied=False) == {
        "dtype": "float16",
        "text_config": {"dtype": "float16", "hidden_size": 8},
    }
