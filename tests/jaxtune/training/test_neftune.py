"""NEFTune: the noise of transformers' hook, in training steps and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scipy import stats
from transformers.integrations.neftune import neftune_post_forward_hook

from jaxtune.data.batch import Batch
from jaxtune.layers.embedding import with_noise
from jaxtune.training.step import loss, make_train_step
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, records_of, trainer_of
from tests.jaxtune.training.test_step import documents, fresh, padded, parts
from tests.oracles import Oracle, make_oracle

loss_with = jax.jit(loss, static_argnums=0, static_argnames="neftune_noise_alpha")
ALPHA, SHAPE = 5.0, (4, 32, 48)


def drawn(seed: int = 0, segment_ids: jax.Array | None = None) -> np.ndarray:
    """The noise alone."""
    noise = with_noise(jnp.zeros(SHAPE), jax.random.key(seed), ALPHA, segment_ids)
    return np.asarray(noise)


@pytest.mark.parity
def test_noise_is_distributed_as_that_of_transformers() -> None:
    module = torch.nn.Embedding(2, SHAPE[-1])
    module.neftune_noise_alpha = ALPHA
    torch.manual_seed(0)
    theirs = neftune_post_forward_hook(module, None, torch.zeros(SHAPE)).numpy()
    bound = ALPHA / (SHAPE[1] * SHAPE[2]) ** 0.5
    ours = drawn()
    for noise in (ours, theirs):
        assert 0.99 * bound < np.abs(noise).max() <= bound
    assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 0.01
    assert stats.kstest(ours.ravel(), "uniform", (-bound, 2 * bound)).pvalue > 0.01
    module.eval()
    assert not neftune_post_forward_hook(module, None, torch.zeros(SHAPE)).numpy().any()


def test_noise_of_a_document_does_not_depend_on_the_row_that_it_is_packed_in() -> None:
    """One of 8 tokens, one of 16, and 8 of padding."""
    segments = jnp.repeat(jnp.array([1, 2, 0]), jnp.array([8, 16, 8]), total_repeat_length=32)
    noise = np.abs(drawn(segment_ids=jnp.tile(segments, (SHAPE[0], 1))))
    for tokens, length in ((slice(0, 8), 8), (slice(8, 24), 16)):
        bound = ALPHA / (length * SHAPE[2]) ** 0.5
        assert 0.99 * bound < noise[:, tokens].max() <= bound


def test_noise_keeps_the_dtype() -> None:
    x = jnp.ones(SHAPE, jnp.bfloat16)
    assert with_noise(x, jax.random.key(0), ALPHA, None).dtype == jnp.bfloat16


def window(key: jax.Array | None) -> Batch:
    return padded(documents(), dropout_key=key)


def test_noise_follows_the_key_of_the_batch_and_is_off_without_it() -> None:
    def loss_of(key: jax.Array | None, alpha: float | None) -> float:
        total, _ = loss_with(*parts(), window(key), neftune_noise_alpha=alpha)
        return float(total)

    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    noisy = [loss_of(key, ALPHA) for key in keys]
    assert noisy[0] == noisy[1] != noisy[2]
    plain = loss_of(keys[0], None)
    assert abs(noisy[0] - plain) > 1e-3
    assert plain == loss_of(None, ALPHA) == loss_of(keys[0], 0.0)


def test_a_step_with_noise_needs_a_key() -> None:
    graphdef, trainable, frozen = parts()
    tx = optax.sgd(1.0)
    step = make_train_step(graphdef, tx, neftune_noise_alpha=ALPHA)
    with pytest.raises(ValueError, match=r"NEFTune's noise need `Batch.dropout_key`"):
        step(fresh(trainable), tx.init(trainable), frozen, window(None))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("neftune"), initializer_range=0.3)


def test_a_run_draws_noise_by_its_seed_and_leaves_the_model_without_any(oracle: Oracle) -> None:
    def losses(**options: float) -> list[float]:
        trainer = trainer_of(adapted(oracle), max_steps=3, **options)
        trainer.train()
        model, ids = trainer.model, np.arange(8, dtype=np.int32)[None]
        np.testing.assert_array_equal(model(ids), model(ids))
        return [record["loss"] for record in records_of(trainer)]

    noisy = losses(neftune_noise_alpha=ALPHA)
    assert noisy == losses(neftune_noise_alpha=ALPHA)
    assert min(np.abs(np.subtract(noisy, losses()))) > 1e-3
