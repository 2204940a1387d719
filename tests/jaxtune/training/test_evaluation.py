"""Losses and predictions of an evaluation: over tokens, however rows are batched and cut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune import SFTConfig, SFTTrainer, TrainerCallback
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import LanguageModel
from jaxtune.training import evaluation, evaluation_step
from jaxtune.training.inputs import check_evaluation
from jaxtune.training.step import split
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, trainer_of
from tests.loaded import load_base
from tests.oracles import Oracle, make_oracle, oracle_logits
from tests.tolerances import relative_error, tolerance
from tests.words import ragged_rows, word_tokenizer

# Soft-capped logits.
GEMMA2 = next(variant for variant in VARIANTS if variant.name == "gemma2-five-layers")
ROWS = ragged_rows(9, seed=1)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(GEMMA2, tmp_path_factory.mktemp("evaluated"), initializer_range=0.3)


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> LanguageModel:
    return adapted(oracle)


def trainer(model: LanguageModel, rows: Any = ROWS, **options: Any) -> SFTTrainer:
    """One that is never trained."""
    return trainer_of(model, rows=4, eval_dataset=rows, **options)


@pytest.fixture(scope="module")
def expected(oracle: Oracle, model: LanguageModel) -> dict[str, float]:
    """Of torch in float64, a row at a time: sums over all tokens, divided once."""
    losses, entropies, correct = [], [], []
    for row in trainer(model).eval_dataset.rows:
        z = oracle_logits(oracle, row[None])[0, :-1]
        log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
        losses.append(-log_p[np.arange(len(row) - 1), row[1:]])
        entropies.append(-(np.exp(log_p) * log_p).sum(-1))
        correct.append(z.argmax(-1) == row[1:])
    return {
        "loss": float(np.concatenate(losses).mean()),
        "entropy": float(np.concatenate(entropies).mean()),
        "mean_token_accuracy": float(np.concatenate(correct).mean()),
    }


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_metrics_are_means_over_tokens_whatever_the_batch(
    model: LanguageModel, expected: dict[str, float], batch: int
) -> None:
    steps: list[int] = []

    class Counts(TrainerCallback):
        def on_prediction_step(self, *_: Any, **__: Any) -> None:
            steps.append(1)

    found = trainer(model, per_device_eval_batch_size=batch, callbacks=[Counts]).evaluate()
    for name, value in expected.items():
        assert found[f"eval_{name}"] == pytest.approx(value, rel=tolerance("float32", "loss"))
    assert len(steps) == -(-len(ROWS) // batch)


def test_logits_exist_a_chunk_of_positions_at_a_time(
    model: LanguageModel, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five positions do not divide the bucket: what pads the last chunk counts nowhere."""
    shapes = []

    def preprocess(logits: Any, labels: Any) -> dict[str, Any]:
        shapes.append((logits.shape, labels.shape))
        return {"token": logits.argmax(-1), "label": labels, "all": logits}

    whole = trainer(model, preprocess_logits_for_metrics=preprocess).predict(ROWS)
    monkeypatch.setattr(evaluation_step, "CHUNK_BYTES", 5 * 4 * 4 * model.config.vocab_size)
    jax.clear_caches()
    cut = trainer(model, preprocess_logits_for_metrics=preprocess).predict(ROWS)
    assert ((4, 5, model.config.vocab_size), (4, 5)) in shapes
    for name, value in expected.items():
        assert cut.metrics[f"test_{name}"] == pytest.approx(value, rel=1e-5)
    np.testing.assert_array_equal(whole.predictions["token"], cut.predictions["token"])
    np.testing.assert_array_equal(cut.predictions["label"], cut.label_ids)
    error = relative_error(cut.predictions["all"], whole.predictions["all"])
    assert error <= tolerance("float32", "logits")


def test_predictions_are_those_of_the_rows_in_their_order(
    oracle: Oracle, model: LanguageModel
) -> None:
    found = trainer(model).predict(ROWS)
    rows = trainer(model).eval_dataset.rows
    longest = max(map(len, rows))
    assert found.predictions.shape == (9, longest, model.config.vocab_size)
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(found.label_ids[number, : len(row)], row)
        assert (found.label_ids[number, len(row) :] == -100).all()
        logits = oracle_logits(oracle, row[None])[0]
        error = relative_error(found.predictions[number, : len(row)], logits)
        assert error <= tolerance("float32", "logits")


def test_only_labels_that_count_are_measured(oracle: Oracle, model: LanguageModel) -> None:
    rows = [{"input_ids": [1, 5, 6, 7], "labels": [-100, -100, 6, 7]}]
    found = trainer(model, rows).evaluate()
    z = oracle_logits(oracle, np.array([[1, 5, 6, 7]]))[0, 1:3]
    losses = np.logaddexp.reduce(z, axis=-1) - z[np.arange(2), [6, 7]]
    assert found["eval_loss"] == pytest.approx(losses.mean(), rel=tolerance("float32", "loss"))


def test_an_evaluation_has_no_dropout_and_changes_nothing(oracle: Oracle) -> None:
    base = load_base(oracle.folder)
    base.carried.tokenizer = word_tokenizer()
    its = trainer(FastLanguageModel.get_peft_model(base, r=4, lora_dropout=0.5))
    before = jax.tree.map(np.array, split(its.model)[1])
    first, second = its.evaluate(), its.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    after = nnx.state(its.model, nnx.Param)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, after))


def test_several_sets_have_names(model: LanguageModel) -> None:
    sets = {"short": ROWS[:3], "long": ROWS[3:]}
    its = trainer(model, sets)
    found = its.evaluate()
    assert [name for name in found if name.endswith("_loss")] == [
        "eval_short_loss",
        "eval_long_loss",
    ]
    assert its.evaluate("long", metric_key_prefix="own")["own_loss"] == found["eval_long_loss"]
    assert its.evaluate(ROWS[:3])["eval_loss"] == found["eval_short_loss"]
    assert len([record for record in its.state.log_history if "eval_short_loss" in record]) == 1
    with pytest.raises(ValueError, match=r"must name one of \['long', 'short'\]; got 'other'"):
        its.evaluate("other")


def test_metrics_of_ones_own(model: LanguageModel) -> None:
    def accuracy(found: Any) -> dict[str, Any]:
        predictions, labels = found
        counted = labels[:, 1:] != -100
        right = predictions[:, :-1] == labels[:, 1:]
        return {"accuracy": (right & counted).sum() / counted.sum(), "eval_rows": jnp.int32(9)}

    its = trainer(
        model,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
    )
    found = its.evaluate()
    assert found["eval_accuracy"] == pytest.approx(found["eval_mean_token_accuracy"])
    assert isinstance(found["eval_accuracy"], float)
    assert found["eval_rows"] == 9
    alone = trainer(model, compute_metrics=accuracy, prediction_loss_only=True)
    assert "eval_accuracy" not in alone.evaluate()
    assert alone.predict(ROWS).predictions is None


def test_logits_of_many_rows_are_refused(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "LOGIT_BYTES", 1000)
    message = "may take 0 GiB; got 9 rows .*Pass preprocess_logits_for_metrics=lambda"
    with pytest.raises(ValueError, match=message):
        trainer(model).predict(ROWS)


WRONG = [
    ({"preprocess_logits_for_metrics": lambda z, _: z.argmax(dim=-1)}, TypeError, "with jax.numpy"),
    (
        {"preprocess_logits_for_metrics": lambda z, _: z.mean()},
        ValueError,
        r"got \(\) for \(4, 14\)",
    ),
    (
        {"preprocess_logits_for_metrics": lambda z, _: z[:, :-1].argmax(-1)},
        ValueError,
        r"got \(4, 13\) for \(4, 14\)",
    ),
    ({"compute_metrics": lambda _: 0.5}, TypeError, "must return a dict .* got float"),
]


@pytest.mark.parametrize(("given", "kind", "message"), WRONG)
def test_functions_that_do_not_fit_are_refused(
    model: LanguageModel, given: dict[str, Any], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        trainer(model, **{"compute_metrics": lambda _: {}, **given}).evaluate()


def test_requests_that_cannot_be_served_are_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="the trainer has no `eval_dataset`"):
        trainer(model, None).evaluate()
    with pytest.raises(ValueError, match="`ignore_keys` must be None"):
        trainer(model).evaluate(ignore_keys=["logits"])
    with pytest.raises(TypeError, match="`test_dataset` must be one data set; got dict"):
        trainer(model).predict({"a": ROWS})
    for options, message in (
        ({"eval_strategy": "epoch"}, "`eval_strategy`='epoch' needs an `eval_dataset`"),
        ({"eval_on_start": True}, "`eval_on_start` needs an `eval_dataset`"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(model, None, **options)
    with pytest.raises(TypeError, match="`compute_metrics` must be a function or None; got str"):
        check_evaluation(SFTConfig(), ROWS, "accuracy", None, None)
    message = "got 'loss', wanted one of .'eval_a_loss'"
    with pytest.raises(ValueError, match=message):
        trainer(model, {"a": ROWS}, metric_for_best_model="loss")
