"""A run with evaluations, a best model and early stopping, against TRL's trainer on the same."""

import warnings
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np
import peft
import pytest
import transformers
import trl
from safetensors.numpy import load_file

from jaxtune import SFTTrainer, TrainerCallback
from jaxtune.training import step
from jaxtune.training.callbacks import EVENTS
from tests.families import VARIANTS
from tests.jaxtune.training.runs import SHARED, adapted, records_of, trainer_of
from tests.oracles import Oracle, make_oracle
from tests.tolerances import relative_error, tolerance
from tests.trl_runs import run_trl
from tests.words import ragged_rows, word_tokenizer

ROWS = ragged_rows(9, seed=1)
OPTIONS: dict[str, Any] = {
    "max_steps": 20,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_on_start": True,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "per_device_eval_batch_size": 16,  # one batch: the only size at which TRL's loss is the mean
}
# Of the evaluations at steps 0, 2, 4, 6 and 8; the first one is no candidate.
SCORES = (0.9, 0.5, 0.7, 0.6, 0.65)


class Scores:
    """A `compute_metrics` whose series of metrics is known; keeps what it gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, found: Any) -> dict[str, float]:
        self.seen.append((np.asarray(found.predictions), np.asarray(found.label_ids)))
        return {"score": SCORES[len(self.seen) - 1]}


def recording(base: type) -> Any:
    """A callback that notes each event with the step at which it comes."""

    def note(event: str) -> Any:
        def method(self: Any, _: Any, state: Any, *__: Any, **___: Any) -> None:
            self.events.append((event, state.global_step))

        # As if it had been written out in the class.
        method.__qualname__ = f"Recorder.{event}"
        return method

    return type("Recorder", (base,), {"events": [], **{name: note(name) for name in EVENTS}})()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("control"), initializer_range=0.3)


def trl_run(oracle: Oracle, folder: Path, callback: Any, **options: Any) -> trl.SFTTrainer:
    """TRL's trainer after a run with a recorder and a callback."""
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own run; nothing of ours warns here
        return run_trl(
            peft.PeftModel.from_pretrained(base, oracle.adapter_folder, is_trainable=True),
            ragged_rows(13),
            word_tokenizer(),
            folder,
            arguments={
                "eval_dataset": datasets.Dataset.from_list(ROWS),
                "compute_metrics": Scores(),
                "callbacks": [recording(transformers.TrainerCallback), callback],
            },
            **{**SHARED, **options},
        )


def our_run(oracle: Oracle, folder: Path, callback: Any, **options: Any) -> SFTTrainer:
    """Ours after the same run."""
    trainer = trainer_of(
        adapted(oracle),
        output_dir=folder,
        eval_dataset=ROWS,
        compute_metrics=Scores(),
        callbacks=[recording(TrainerCallback), callback],
        **options,
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def theirs(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> trl.SFTTrainer:
    stopping = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    return trl_run(oracle, tmp_path_factory.mktemp("theirs"), stopping, **OPTIONS)


@pytest.fixture(scope="module")
def ours(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> SFTTrainer:
    stopping = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    return our_run(oracle, tmp_path_factory.mktemp("ours"), stopping, **OPTIONS)


def events_of(trainer: Any) -> list[tuple[str, int]]:
    callbacks = trainer.callback_handler.callbacks
    return next(its.events for its in callbacks if type(its).__name__ == "Recorder")


@pytest.mark.parity
def test_events_come_in_transformers_order(ours: SFTTrainer, theirs: trl.SFTTrainer) -> None:
    expected = events_of(theirs)
    assert events_of(ours) == expected
    assert {name for name, _ in expected} == set(EVENTS) - {"on_predict"}


@pytest.mark.parity
def test_evaluations_give_trls_records(ours: SFTTrainer, theirs: trl.SFTTrainer) -> None:
    mine, their = ([r for r in t.state.log_history if "eval_loss" in r] for t in (ours, theirs))
    assert [record["step"] for record in mine] == [record["step"] for record in their]
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    for one, other in zip(mine, their, strict=True):
        assert set(one) == set(other) - {"eval_model_preparation_time"}
        assert all(one[name] > 0 for name in timed)
        for name in set(one) - set(timed):
            limit = tolerance("float32", "trl_loss")
            assert one[name] == pytest.approx(float(other[name]), rel=limit), (name, one)


@pytest.mark.parity
def test_predictions_are_the_logits_that_trl_gives(
    ours: SFTTrainer, theirs: trl.SFTTrainer
) -> None:
    """Before the first step, at every position that is no padding."""
    found, labels = ours.compute_metrics.seen[0]
    expected, their_labels = theirs.compute_metrics.seen[0]
    np.testing.assert_array_equal(labels, their_labels)
    inside = labels != -100
    error = relative_error(found[inside], expected[inside])
    assert error <= tolerance("float32", "logits")
    assert (found[~inside] == -100).all()


@pytest.mark.parity
def test_the_run_stops_and_keeps_the_best_where_trl_does(
    ours: SFTTrainer, theirs: trl.SFTTrainer
) -> None:
    for name in ("global_step", "epoch", "best_metric", "best_global_step", "eval_steps"):
        assert getattr(ours.state, name) == getattr(theirs.state, name), name
    assert (ours.state.global_step, ours.state.best_global_step) == (8, 4)
    best = [Path(trainer.state.best_model_checkpoint) for trainer in (ours, theirs)]
    assert {path.name for path in best} == {"checkpoint-4"}
    folders = [sorted(its.name for its in path.parent.glob("checkpoint-*")) for path in best]
    assert folders[0] == folders[1] == ["checkpoint-4", "checkpoint-8"]
    assert ours.state.stateful_callbacks == theirs.state.stateful_callbacks


@pytest.mark.parity
def test_the_losses_are_not_moved_by_evaluations(ours: SFTTrainer, theirs: trl.SFTTrainer) -> None:
    mine = [record["loss"] for record in records_of(ours)]
    their = [float(r["loss"]) for r in theirs.state.log_history if "loss" in r]
    assert mine == pytest.approx(their, rel=tolerance("float32", "trl_loss"))


def test_the_model_is_the_best_one_in_the_end(ours: SFTTrainer, tmp_path: Path) -> None:
    ours.save_model(tmp_path)
    last = Path(ours.args.output_dir) / "checkpoint-8"
    folders = (tmp_path, Path(ours.state.best_model_checkpoint), last)
    after, best, end = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    for name, tensor in after.items():
        np.testing.assert_array_equal(tensor, best[name])
    name = next(name for name in best if "lora_B" in name)
    assert not np.array_equal(best[name], end[name])


class Steers(transformers.TrainerCallback):
    """Ends the first epoch after two steps, evaluates and saves out of turn, and vetoes a save."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step == 2
        control.should_evaluate |= state.global_step == 3
        control.should_save |= state.global_step == 5

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save &= state.global_step != 2


EPOCHS: dict[str, Any] = {
    "max_steps": -1,
    "num_train_epochs": 2,
    "logging_strategy": "epoch",
    "logging_first_step": True,
    "eval_strategy": "epoch",
    "eval_delay": 1,
    "save_strategy": "epoch",
    "dataloader_drop_last": True,
    "per_device_eval_batch_size": 3,  # divides the rows: theirs would drop the last ones
}


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("save", ["epoch", "best"])
def test_a_callback_steers_as_in_transformers(oracle: Oracle, tmp_path: Path, save: str) -> None:
    options = {**EPOCHS, "save_strategy": save, "metric_for_best_model": "score"}
    theirs = trl_run(oracle, tmp_path / "theirs", Steers(), **options)
    ours = our_run(oracle, tmp_path / "ours", Steers(), **options)
    assert events_of(ours) == events_of(theirs)
    for name in ("global_step", "epoch", "best_metric", "best_global_step", "max_steps"):
        assert getattr(ours.state, name) == pytest.approx(getattr(theirs.state, name)), name
    mine, their = ([r for r in t.state.log_history if "loss" in r] for t in (ours, theirs))
    for one, other in zip(mine, their, strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance("float32", "trl_loss"))
    mine, their = ({its.name for its in (tmp_path / n).glob("check*")} for n in ("ours", "theirs"))
    assert mine == their != set()


@pytest.mark.slow
def test_full_determinism_reaches_the_compiler(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer_of(adapted(oracle), max_steps=1, full_determinism=True).train()
    monkeypatch.setattr(step, "DETERMINISTIC", {"xla_no_such_option": True})
    trainer_of(adapted(oracle), max_steps=1).train()
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        trainer_of(adapted(oracle), max_steps=1, full_determinism=True).train()


@pytest.mark.slow
def test_nothing_is_logged_where_nothing_shall_be(oracle: Oracle) -> None:
    trainer = trainer_of(adapted(oracle), max_steps=2, logging_strategy="no")
    trainer.train()
    assert ["train_loss" in record for record in trainer.state.log_history] == [True]
