"""Whole calls of `generate` that draw: frequencies, seeds, copies, state, compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from jaxtune.generation import decode
from jaxtune.language_model import LanguageModel
from tests.jaxtune.generation.tiny import VOCABULARY, tiny_model

PROMPT = [1, 7, 9, 7]
DRAWS = 4000
OPTIONS = {"do_sample": True, "temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.02}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def distribution(model: LanguageModel, row: list[int]) -> np.ndarray:
    """Of the token after `row`, by transformers' processors one after another."""
    logits = torch.tensor(np.asarray(model(np.array([row], np.int32)))[:, -1])
    ids = torch.tensor([row])
    for step in (
        transformers.RepetitionPenaltyLogitsProcessor(1.2),
        transformers.TemperatureLogitsWarper(1.3),
        transformers.TopKLogitsWarper(12),
        transformers.TopPLogitsWarper(0.9),
        transformers.MinPLogitsWarper(0.02),
    ):
        logits = step(ids, logits)
    return logits.softmax(-1).numpy()[0]


def excess(counts: np.ndarray, expected: np.ndarray) -> float:
    """Of chi-square over its mean, in standard deviations."""
    kept = expected > 0
    assert (counts[~kept] == 0).all()
    mean = counts.sum() * expected[kept]
    freedom = kept.sum() - 1
    return float((((counts[kept] - mean) ** 2 / mean).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parity
def test_both_tokens_follow_transformers_distribution(model: LanguageModel) -> None:
    out = model.generate(
        [PROMPT, [3]],
        max_new_tokens=2,
        num_return_sequences=DRAWS,
        eos_token_id=-1,
        repetition_penalty=1.2,
        seed=0,
        **OPTIONS,
    )
    assert out.shape == (2 * DRAWS, len(PROMPT) + 2)
    np.testing.assert_array_equal(out[:DRAWS, : len(PROMPT)], [PROMPT] * DRAWS)
    np.testing.assert_array_equal(out[DRAWS:, len(PROMPT) - 1], [3] * DRAWS)
    for prompt, rows in ((PROMPT, out[:DRAWS, 4:]), ([3], out[DRAWS:, 4:])):
        first = np.bincount(rows[:, 0], minlength=VOCABULARY)
        assert (first > 0).sum() >= 4  # a distribution that can be missed
        assert excess(first, distribution(model, prompt)) < 4.5
        token = int(first.argmax())
        second = np.bincount(rows[rows[:, 0] == token, 1], minlength=VOCABULARY)
        assert excess(second, distribution(model, [*prompt, token])) < 4.5


def test_a_seed_says_everything(model: LanguageModel) -> None:
    def drawn(seed: int | None = None) -> list[list[int]]:
        return model.generate([PROMPT], max_new_tokens=16, seed=seed, **OPTIONS).tolist()

    assert drawn(7) == drawn(7) != drawn(8)
    assert drawn() == drawn(model.carried.random_state)


def test_nothing_of_the_model_changes(model: LanguageModel) -> None:
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model))]
    structure = nnx.graphdef(model)
    model.generate([PROMPT], max_new_tokens=16, seed=7, **OPTIONS)
    after = jax.tree.leaves(nnx.state(model))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)  # not donated either: reading would fail
    assert nnx.graphdef(model) == structure


def test_near_lengths_and_other_values_compile_nothing(model: LanguageModel) -> None:
    def compiled() -> tuple[int, int]:
        return decode.prefill._cache_size(), decode.decode._cache_size()

    def run(length: int, new: int, **values: object) -> None:
        options = {**OPTIONS, "eos_token_id": 2, "pad_token_id": 0, **values}
        model.generate([[5] * length], max_new_tokens=new, **options)

    run(4, 16)
    programs = compiled()
    run(32, 30, temperature=0.8, top_p=0.3, min_p=0.5, seed=4, eos_token_id=[4, 5, 6])
    run(1, 1)
    assert compiled() == programs


def test_jax_arrays_and_a_model_that_samples_by_itself() -> None:
    model = tiny_model(do_sample=True, temperature=1.3, top_k=12, top_p=0.9, min_p=0.02)
    given = jnp.asarray([PROMPT]), jnp.ones((1, 4), int)
    own = model.generate(*given, max_new_tokens=16, seed=7)
    np.testing.assert_array_equal(
        own, model.generate([PROMPT], max_new_tokens=16, seed=7, **OPTIONS)
    )
