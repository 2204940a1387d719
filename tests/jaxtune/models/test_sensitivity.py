"""Each field of the configuration matters: perturbed, it moves the logits or is refused."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.config import DecoderConfig, LayerSpec, NormSpec, RopeSpec
from jaxtune.models.configuration import read_hf_config
from jaxtune.models.loading import load_model
from jaxtune.models.registry import find_family
from tests.families import VARIANTS
from tests.oracles import make_oracle, random_rows
from tests.tolerances import relative_error, tolerance

LLAMA3_ROPE, BIASES, GEMMA2 = 1, 2, 3

Change = Callable[[DecoderConfig], DecoderConfig]


def put(**values: Any) -> Change:
    return lambda config: dataclasses.replace(config, **values)


def scale(name: str, factor: float) -> Change:
    return lambda config: dataclasses.replace(config, **{name: getattr(config, name) * factor})


def norm(**values: Any) -> Change:
    return lambda config: put(norm=dataclasses.replace(config.norm, **values))(config)


def first_layer(**values: Any) -> Change:
    def change(config: DecoderConfig) -> DecoderConfig:
        first = dataclasses.replace(config.period[0], **values)
        return put(period=(first, *config.period[1:]))(config)

    return change


def rope(**values: Any) -> Change:
    return lambda config: first_layer(rope=dataclasses.replace(config.period[0].rope, **values))(
        config
    )


# (class, field) -> variant, standard deviation of the weights, change.
MOVES: dict[tuple[type, str], tuple[int, float, Change]] = {
    (DecoderConfig, "hidden_activation"): (GEMMA2, 0.3, put(hidden_activation="silu")),
    (DecoderConfig, "norm"): (GEMMA2, 0.3, norm(unit_offset=False)),
    (DecoderConfig, "period"): (GEMMA2, 0.3, lambda c: put(period=c.period[::-1])(c)),
    (DecoderConfig, "query_scale"): (GEMMA2, 0.3, scale("query_scale", 1.1)),
    (DecoderConfig, "embedding_scale"): (GEMMA2, 0.3, scale("embedding_scale", 0.5)),
    (DecoderConfig, "attn_logit_softcapping"): (GEMMA2, 0.3, put(attn_logit_softcapping=None)),
    (DecoderConfig, "final_logit_softcapping"): (GEMMA2, 0.3, put(final_logit_softcapping=None)),
    (NormSpec, "rms_norm_eps"): (GEMMA2, 0.02, norm(rms_norm_eps=1e-3)),
    (NormSpec, "unit_offset"): (BIASES, 0.3, norm(unit_offset=True)),
    (LayerSpec, "window"): (GEMMA2, 0.3, first_layer(window=6)),
    (LayerSpec, "rope"): (
        BIASES,
        0.3,
        first_layer(rope=RopeSpec(rope_type="default", rope_theta=100.0)),
    ),
    (RopeSpec, "rope_type"): (
        LLAMA3_ROPE,
        0.3,
        first_layer(rope=RopeSpec(rope_type="linear", rope_theta=500.0, factor=4.0)),
    ),
    (RopeSpec, "rope_theta"): (LLAMA3_ROPE, 0.3, rope(rope_theta=400.0)),
    (RopeSpec, "factor"): (LLAMA3_ROPE, 0.3, rope(factor=3.0)),
    (RopeSpec, "low_freq_factor"): (LLAMA3_ROPE, 0.3, rope(low_freq_factor=0.5)),
    (RopeSpec, "high_freq_factor"): (LLAMA3_ROPE, 0.3, rope(high_freq_factor=6.0)),
    (RopeSpec, "original_max_position_embeddings"): (
        LLAMA3_ROPE,
        0.3,
        rope(original_max_position_embeddings=64),
    ),
}

REFUSALS: dict[tuple[type, str], tuple[int, Change]] = {
    (DecoderConfig, "vocab_size"): (BIASES, put(vocab_size=98)),
    (DecoderConfig, "hidden_size"): (BIASES, put(hidden_size=48)),
    (DecoderConfig, "intermediate_size"): (BIASES, put(intermediate_size=48)),
    (DecoderConfig, "num_hidden_layers"): (BIASES, put(num_hidden_layers=2)),
    (DecoderConfig, "num_attention_heads"): (BIASES, put(num_attention_heads=2)),
    (DecoderConfig, "num_key_value_heads"): (BIASES, put(num_key_value_heads=2)),
    (DecoderConfig, "head_dim"): (BIASES, put(head_dim=8)),
    (DecoderConfig, "max_position_embeddings"): (BIASES, put(max_position_embeddings=18)),
    (DecoderConfig, "tie_word_embeddings"): (GEMMA2, put(tie_word_embeddings=False)),
    (DecoderConfig, "attention_bias"): (BIASES, put(attention_bias=False)),
    (DecoderConfig, "mlp_bias"): (BIASES, put(mlp_bias=False)),
    (NormSpec, "sandwich"): (GEMMA2, norm(sandwich=False)),
    (NormSpec, "qk_norm"): (GEMMA2, norm(qk_norm=True)),
}


@functools.cache
def checkpoint(variant: int, draw: float, folder: Path) -> tuple[Path, DecoderConfig]:
    base = make_oracle(VARIANTS[variant], folder, initializer_range=draw).folder
    hf_config = read_hf_config(base)
    return base, find_family(hf_config["model_type"]).config_from_hf(hf_config)


def logits(variant: int, draw: float, folder: Path, change: Change) -> np.ndarray:
    """The checkpoint's logits under a changed configuration; op by op, nothing to compile."""
    base, config = checkpoint(variant, draw, folder / f"{variant}-{draw}")
    family = find_family(VARIANTS[variant].model_type)
    model = load_model(base, family, change(config), dtype=jnp.float32, progress=False)
    with jax.disable_jit():
        return np.asarray(model(random_rows((1, 19)).astype(np.int32)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sensitivity")


@pytest.mark.parametrize("field", MOVES, ids=[f"{c.__name__}.{name}" for c, name in MOVES])
def test_a_perturbed_field_moves_the_logits(field: tuple[type, str], folder: Path) -> None:
    variant, draw, change = MOVES[field]
    before = logits(variant, draw, folder, lambda config: config)
    after = logits(variant, draw, folder, change)
    assert relative_error(after, before) >= 5 * tolerance("float32", "logits")


@pytest.mark.parametrize("field", REFUSALS, ids=[f"{c.__name__}.{name}" for c, name in REFUSALS])
def test_a_perturbed_size_is_refused(field: tuple[type, str], folder: Path) -> None:
    variant, change = REFUSALS[field]
    with pytest.raises(ValueError, match=r"must|config"):
        logits(variant, 0.3, folder, change)


def test_every_field_is_perturbed() -> None:
    fields = {
        (kind, field.name)
        for kind in (DecoderConfig, NormSpec, LayerSpec, RopeSpec)
        for field in dataclasses.fields(kind)
    }
    assert fields == MOVES.keys() | REFUSALS.keys()
