"""The decoder's structure: positions, programs that do not grow with depth, what remat keeps."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import DataCollatorWithFlattening

from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import projections
from jaxtune.config import DecoderConfig, LayerSpec, NormSpec, Remat, RopeSpec
from jaxtune.data.batch import Batch
from jaxtune.layers.cache import empty_cache
from jaxtune.layers.linear import LoraSpec
from jaxtune.models.build import build
from jaxtune.models.decoder import CausalLM, default_positions
from jaxtune.models.gemma2 import Gemma2ForCausalLM
from jaxtune.training.step import loss, split
from tests.tolerances import relative_error, tolerance

ROPE = RopeSpec(rope_type="default", rope_theta=100.0)
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=128,
    num_hidden_layers=5,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=64,
    tie_word_embeddings=True,
    norm=NormSpec(rms_norm_eps=1e-5, unit_offset=True, sandwich=True, qk_norm=False),
    period=(LayerSpec(window=4, rope=ROPE), LayerSpec(window=None, rope=ROPE)),
    query_scale=0.3,
    embedding_scale=4.0,
    attention_bias=False,
    mlp_bias=False,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
)


def abstract(layers: int) -> CausalLM:
    config = dataclasses.replace(CONFIG, num_hidden_layers=layers)
    model = build(Gemma2ForCausalLM, config, "abstract")
    spec = LoraSpec(ranks=(2,) * layers, scales=(1.0,) * layers, dropout=0.0)
    inject_lora(model, dict.fromkeys(projections(model), spec), seed=0)
    return model


def gradient_program(model: CausalLM) -> jax.stages.Lowered:
    rows = np.zeros((2, 64), np.int32)
    batch = Batch(input_ids=rows, labels=rows, layout="causal")
    gradient = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
    return gradient.lower(*split(model), batch)


def test_positions_restart_where_the_document_changes() -> None:
    documents = [[5, 6, 7], [8], [9, 10, 11, 12]]
    collator = DataCollatorWithFlattening(return_tensors="np")
    theirs = collator([{"input_ids": document} for document in documents])["position_ids"]
    segments = np.repeat([1, 2, 3], [3, 1, 4])[None].astype(np.int32)
    np.testing.assert_array_equal(default_positions(8, jnp.asarray(segments)), theirs)
    np.testing.assert_array_equal(default_positions(4, None), [[0, 1, 2, 3]])


def test_the_program_does_not_grow_with_depth() -> None:
    """Runs of two-layer periods with and without a tail: 6 and 14 layers, 7 and 15."""
    for few, many in ((6, 14), (7, 15)):
        sizes = [len(gradient_program(abstract(layers)).as_text()) for layers in (few, many)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_full_rematerialisation_keeps_each_layers_input_only() -> None:
    model, temporary = abstract(16), {}
    for remat in ("full", "none"):
        model.model.remat = remat
        memory = gradient_program(model).compile().memory_analysis()
        temporary[remat] = memory.temp_size_in_bytes
    kept = 16 * 2 * 64 * CONFIG.hidden_size * 4  # L B T D, float32
    mlp = 16 * 2 * 64 * CONFIG.intermediate_size * 4  # one of the arrays that "none" keeps
    assert temporary["none"] - temporary["full"] > mlp
    assert temporary["full"] < temporary["none"] / 2
    assert temporary["full"] > kept


@pytest.mark.slow
def test_what_the_backward_pass_keeps_changes_no_gradient() -> None:
    config = dataclasses.replace(CONFIG, num_hidden_layers=4)
    model = build(Gemma2ForCausalLM, config, "random", initializer_range=0.3)
    spec = LoraSpec(ranks=(2,) * 4, scales=(1.0,) * 4, dropout=0.0)
    inject_lora(model, dict.fromkeys(projections(model), spec), seed=0)
    rows = np.random.default_rng(0).integers(0, 64, (2, 16)).astype(np.int32)
    batch = Batch(input_ids=rows, labels=rows, layout="causal")
    gradients = {}
    for remat in get_args(Remat):
        model.model.remat = remat
        gradient = jax.jit(jax.grad(loss, argnums=1, has_aux=True), static_argnums=0)
        gradients[remat] = jax.tree.leaves(gradient(*split(model), batch)[0])
    for remat in get_args(Remat):
        pairs = zip(gradients[remat], gradients["full"], strict=True)
        errors = [relative_error(*pair) for pair in pairs]
        assert max(errors) <= tolerance("float32", "window_gradient")
    assert max(np.abs(leaf).max() for leaf in gradients["full"]) > 0


def test_a_packed_row_may_be_longer_than_the_range() -> None:
    model = build(Gemma2ForCausalLM, CONFIG, "random")
    rows = np.arange(80, dtype=np.int32)[None] % 64
    segments = np.repeat([1, 2], 40)[None].astype(np.int32)
    assert model(rows, segments).shape == (1, 80, 64)
    with pytest.raises(ValueError, match="80 tokens, wanted <= 64"):
        model(rows)


def test_a_cache_needs_segments_and_positions() -> None:
    model = build(Gemma2ForCausalLM, CONFIG, "random")
    cache = empty_cache(5, 1, 8, 1, 8, jnp.float32)
    with pytest.raises(ValueError, match="a cache needs `segment_ids` and `positions`"):
        model.model(jnp.zeros((1, 2), jnp.int32), cache=cache)
