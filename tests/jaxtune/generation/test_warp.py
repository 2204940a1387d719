"""The warped distribution against transformers' processors, put together by transformers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxtune.generation.settings import settle
from jaxtune.generation.warp import choose, warped

pytestmark = pytest.mark.parity

VOCABULARY = 61
ROWS = 5
NOTHING = {"top_k": 0, "do_sample": True}
CASES: dict[str, dict[str, Any]] = {
    "greedy-with-penalty": {"do_sample": False, "repetition_penalty": 1.3},
    "defaults": {"do_sample": True},
    "nothing": NOTHING,
    "temperature": {**NOTHING, "temperature": 0.6},
    "top-k": {"do_sample": True, "top_k": 7},
    "top-k-of-one": {"do_sample": True, "top_k": 1},
    "top-k-over-the-vocabulary": {"do_sample": True, "top_k": 500},
    "top-p": {**NOTHING, "top_p": 0.7},
    "top-p-zero": {**NOTHING, "top_p": 0.0},
    "min-p": {**NOTHING, "min_p": 0.1},
    "min-p-one": {**NOTHING, "min_p": 1.0},
    "penalty": {**NOTHING, "repetition_penalty": 1.4},
    "reward": {**NOTHING, "repetition_penalty": 0.7},
    # Each pair gives another result in the other order.
    "penalty-then-temperature-then-top-p": {
        **NOTHING,
        "repetition_penalty": 1.4,
        "temperature": 1.7,
        "top_p": 0.8,
    },
    "top-k-then-top-p": {"do_sample": True, "top_k": 6, "top_p": 0.75},
    "top-p-then-min-p": {**NOTHING, "top_p": 0.5, "min_p": 0.3},
    "all": {
        "do_sample": True,
        "temperature": 1.5,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
    },
}


@functools.cache
def their_model() -> transformers.LlamaForCausalLM:
    """Only its method that puts the processors in order is used."""
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1,
        )
    )  # fmt: skip


def theirs(logits: np.ndarray, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    config = transformers.GenerationConfig(**{"top_k": 50, **options}, num_beams=1)
    processors = their_model()._get_logits_processor(config, input_ids_seq_length=ids.shape[1])
    return processors(torch.tensor(ids), torch.tensor(logits)).numpy()


def ours(logits: np.ndarray, ids: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    seen = np.zeros(logits.shape, bool)
    seen[np.arange(len(ids))[:, None], ids] = True
    settings = settle(options, {})
    return np.asarray(warped(jnp.asarray(logits), jnp.asarray(seen), settings.warp(0)))


def draw(seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (ROWS, VOCABULARY)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    return logits, random.integers(0, VOCABULARY, (ROWS, 9))


@pytest.mark.parametrize("name", CASES)
def test_the_distribution_is_transformers(name: str) -> None:
    for seed in range(10):
        logits, ids = draw(seed)
        expected, actual = theirs(logits, ids, CASES[name]), ours(logits, ids, CASES[name])
        np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["top-k", "top-p", "min-p", "top-k-then-top-p"])
def test_equal_logits_are_kept_or_go_as_in_transformers(name: str) -> None:
    for seed in range(10):
        logits, ids = draw(seed, ties=True)
        expected, actual = theirs(logits, ids, CASES[name]), ours(logits, ids, CASES[name])
        if name == "top-k":
            np.testing.assert_array_equal(actual, expected)
        else:  # torch does not say which of equal tokens a sort puts first
            np.testing.assert_array_equal(np.sort(actual), np.sort(expected))


def test_draws_follow_the_distribution() -> None:
    logits, ids = draw(0)
    options = CASES["all"]
    expected = torch.tensor(theirs(logits, ids, options)[:1]).softmax(-1).numpy()[0]
    settings = settle(options, {})
    draws = 20_000
    seen = np.zeros((draws, VOCABULARY), bool)
    seen[:, ids[0]] = True
    tokens = choose(jnp.repeat(logits[:1], draws, axis=0), jnp.asarray(seen), settings.warp(3), 0)
    counts = np.bincount(np.asarray(tokens), minlength=VOCABULARY)
    assert (counts[expected == 0] == 0).all()
    assert chi_square(counts, expected) < 4.5


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """In standard deviations from its mean; four and more are one draw in ten thousand."""
    kept = expected > 0
    mean = counts.sum() * expected[kept]
    freedom = kept.sum() - 1
    return float((((counts[kept] - mean) ** 2 / mean).sum() - freedom) / np.sqrt(2 * freedom))


def test_a_draw_depends_on_row_and_step_alone() -> None:
    logits, _ = draw(0)
    settings = settle({"do_sample": True}, {})
    warp, step = settings.warp(1), jax.jit(choose)
    all_rows = np.asarray(step(logits, None, warp, 4))
    np.testing.assert_array_equal(all_rows[:2], step(logits[:2], None, warp, 4))
    assert (all_rows != np.asarray(step(logits, None, warp, 5))).any()
    assert (all_rows != np.asarray(step(logits, None, settings.warp(2), 4))).any()
    assert len(set(np.asarray(step(logits[[0] * 5], None, warp, 4)).tolist())) > 1
