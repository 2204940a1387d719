"""The trainer against TRL's on the same model and rows, and its behaviour as it runs."""

import dataclasses
import json
import math
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optax
import peft
import pytest
import torch
import transformers
import trl
from safetensors.numpy import load_file

from jaxtune import SFTTrainer, TrainerCallback
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import LanguageModel
from tests.families import VARIANTS
from tests.jaxtune.training.runs import SHARED, adapted, records_of, trainer_of
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle
from tests.tolerances import relative_error, tolerance
from tests.trl_runs import run_trl
from tests.words import ragged_rows, word_tokenizer


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("trainer"), initializer_range=0.3)


@pytest.fixture(scope="module")
def adapted_once(oracle: Oracle) -> LanguageModel:
    """For tests that train nothing."""
    return adapted(oracle)


@pytest.fixture(scope="module")
def trl_trainer(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> trl.SFTTrainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own run; nothing of ours warns here
        return trl_run(oracle, tmp_path_factory.mktemp("trl"))


def trl_run(oracle: Oracle, folder: Path) -> trl.SFTTrainer:
    """TRL's trainer after the same run; 13 rows leave a remainder in each epoch."""
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    model = peft.PeftModel.from_pretrained(base, oracle.adapter_folder, is_trainable=True)
    return run_trl(
        model,
        ragged_rows(13),
        word_tokenizer(),
        folder,
        **SHARED,
        save_strategy="steps",
        save_steps=0.4,
        save_only_model=True,
        lr_scheduler_type="cosine",
    )


@pytest.fixture(scope="module")
def our_trainer(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> SFTTrainer:
    trainer = trainer_of(
        adapted(oracle),
        lr_scheduler_type="cosine",
        output_dir=tmp_path_factory.mktemp("ours"),
        save_steps=0.4,
        save_only_model=True,
    )
    assert trainer.train().global_step == 7
    return trainer


@pytest.mark.parity
def test_losses_norms_and_rates_are_those_of_trl(
    our_trainer: SFTTrainer, trl_trainer: trl.SFTTrainer
) -> None:
    theirs = [record for record in trl_trainer.state.log_history if "loss" in record]
    ours = records_of(our_trainer)
    assert len(ours) == len(theirs) == 7
    for mine, their in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "epoch"):
            limit = tolerance("float32", f"trl_{key}")
            assert mine[key] == pytest.approx(float(their[key]), rel=limit, abs=1e-12), (mine, key)


@pytest.mark.parity
def test_checkpoints_are_those_of_trl(our_trainer: SFTTrainer, trl_trainer: trl.SFTTrainer) -> None:
    """The same folders, in each the same files but the pickles, and the same state."""
    mine, theirs = (Path(t.args.output_dir) for t in (our_trainer, trl_trainer))
    folders = sorted(folder.name for folder in mine.glob("checkpoint-*"))
    assert folders == ["checkpoint-3", "checkpoint-6", "checkpoint-7"]
    assert folders == sorted(folder.name for folder in theirs.glob("checkpoint-*"))
    for name in folders:
        written = {file.name for file in (theirs / name).iterdir()}
        written.remove("training_args.bin")
        assert {file.name for file in (mine / name).iterdir()} == {*written, "training_args.json"}
        ours, state = (
            json.loads((folder / name / "trainer_state.json").read_text())
            for folder in (mine, theirs)
        )
        assert set(ours) == set(state)
        # TRL counts tokens and callbacks of its own.
        for key in ("log_history", "num_input_tokens_seen", "total_flos", "stateful_callbacks"):
            del ours[key], state[key]
        assert ours == pytest.approx(state)


@pytest.mark.parity
def test_a_checkpoint_holds_the_adapter_and_the_log_of_its_step(
    our_trainer: SFTTrainer, oracle: Oracle
) -> None:
    folder = Path(our_trainer.args.output_dir) / "checkpoint-7"
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    theirs = peft.PeftModel.from_pretrained(base, folder)
    rows = np.array([[1, 5, 6, 7]])
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(rows)).logits.numpy()
    found = np.asarray(our_trainer.model(rows.astype(np.int32)))
    assert relative_error(found, expected) <= tolerance("float32", "logits")
    state = transformers.TrainerState.load_from_json(str(folder / "trainer_state.json"))
    assert state.log_history == our_trainer.state.log_history[:-1]
    args = json.loads((folder / "training_args.json").read_text())
    assert args == {**dataclasses.asdict(our_trainer.args), "output_dir": str(folder.parent)}


def test_output_and_state_have_the_fields_of_transformers(oracle: Oracle) -> None:
    trainer = trainer_of(adapted(oracle), max_steps=-1, num_train_epochs=2, logging_steps=3)
    output = trainer.train()
    assert output.global_step == 8  # 13 rows: 7 micro-batches, 4 windows an epoch
    assert set(output.metrics) == {
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
        "train_loss",
        "epoch",
    }
    assert output.metrics["epoch"] == 2.0
    assert math.isfinite(output.training_loss)
    records = trainer.state.log_history
    assert [record["step"] for record in records] == [3, 6, 8, 8]
    assert set(records[0]) == {"loss", "grad_norm", "learning_rate", "epoch", "step"}
    assert trainer.state.num_input_tokens_seen == 2 * sum(
        len(row) for row in trainer.train_dataset.rows
    )


class Visitor(TrainerCallback):
    """Generates and saves at every step; may interrupt the run."""

    def __init__(self, folder: Path, *, at: int = 0, how: str = "") -> None:
        self.folder, self.at, self.how = folder, at, how
        self.generated: list[np.ndarray] = []
        self.logged: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.generated.append(model.generate([[1, 5, 6]], max_new_tokens=4, eos_token_id=-1))
        model.save_pretrained(self.folder / f"step-{state.global_step}")
        if state.global_step == self.at:
            if self.how == "exception":
                raise KeyboardInterrupt
            if self.how == "signal":
                os.kill(os.getpid(), signal.SIGINT)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logged.append(kwargs["logs"]["step"])


def saved_tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_callback_generates_and_saves_at_every_step(oracle: Oracle, tmp_path: Path) -> None:
    model = adapted(oracle)
    visitor = Visitor(tmp_path)
    trainer_of(model, max_steps=3, callbacks=[visitor]).train()
    assert len(visitor.generated) == 3
    assert visitor.logged == [1, 2, 3, 3]  # the last one is the summary
    steps = [saved_tensors(tmp_path / f"step-{n}") for n in (1, 2, 3)]
    name = next(name for name in steps[0] if "lora_B" in name)
    # The first step of a warm-up runs at rate 0; the later ones move.
    assert not np.array_equal(steps[1][name], steps[2][name])
    model.save_pretrained(tmp_path / "end")
    np.testing.assert_array_equal(saved_tensors(tmp_path / "end")[name], steps[2][name])


@pytest.mark.parametrize("how", ["exception", "signal"])
def test_an_interrupted_run_leaves_a_whole_model(oracle: Oracle, tmp_path: Path, how: str) -> None:
    model = adapted(oracle)
    trainer = trainer_of(model, callbacks=[Visitor(tmp_path, at=2, how=how)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.state.global_step == 2
    out = model.generate([[1, 5, 6]], max_new_tokens=4, eos_token_id=-1)
    assert out.shape == (1, 7)
    model.save_pretrained(tmp_path / "after")
    expected = saved_tensors(tmp_path / "step-2")
    for name, tensor in saved_tensors(tmp_path / "after").items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_the_same_seed_gives_the_same_losses(oracle: Oracle) -> None:
    runs = []
    for _ in range(2):
        trainer = trainer_of(adapted(oracle), max_steps=3)
        trainer.train()
        runs.append([record["loss"] for record in records_of(trainer)])
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_dropout_of_the_adapter_is_used_and_reproducible(oracle: Oracle) -> None:
    def losses(dropout: float, seed: int) -> list[float]:
        base = load_base(oracle.folder)
        base.carried.tokenizer = word_tokenizer()
        model = FastLanguageModel.get_peft_model(base, r=4, lora_dropout=dropout)
        trainer = trainer_of(model, max_steps=3, warmup_steps=0, seed=seed)
        trainer.train()
        return [record["loss"] for record in records_of(trainer)]

    assert losses(0.5, 1) == losses(0.5, 1)
    assert losses(0.5, 1) != losses(0.0, 1)


def test_save_model_writes_adapter_and_tokenizer_to_output_dir(
    oracle: Oracle, tmp_path: Path
) -> None:
    trainer_of(adapted(oracle), output_dir=str(tmp_path / "out")).save_model()
    again = load_adapted(tmp_path / "out")
    rows = np.array([[1, 5, 6, 7]], np.int32)
    np.testing.assert_array_equal(np.asarray(again(rows)), np.asarray(adapted(oracle)(rows)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("w1 w2")["input_ids"] == word_tokenizer()("w1 w2")["input_ids"]


def test_a_constant_schedule_has_no_default_warm_up(adapted_once: LanguageModel) -> None:
    trainer = trainer_of(adapted_once, lr_scheduler_type="constant", warmup_steps=0.1)
    assert trainer.create_scheduler(20)(0) == pytest.approx(2e-2)


def test_the_base_does_not_change(oracle: Oracle) -> None:
    model = adapted(oracle)
    trainer_of(model, max_steps=2, warmup_steps=0).train()
    weights = load_file(oracle.folder / "model.safetensors")
    np.testing.assert_array_equal(
        model.model.layers.mlp.up_proj.weight[...][1],
        weights["model.layers.1.mlp.up_proj.weight"],
    )


SGD = {"max_steps": 3, "warmup_steps": 0, "weight_decay": 0.0}
RATE = optax.linear_schedule(2e-2, 0.0, 3)


class Returns(SFTTrainer):
    """An override that returns an optimizer over the schedule of the run."""

    def create_optimizer(self) -> optax.GradientTransformation:
        return optax.sgd(self.lr_scheduler)


class Sets(SFTTrainer):
    """An override as transformers' users write it."""

    def create_optimizer(self) -> Any:
        if self.optimizer is None:
            self.lr_scheduler = RATE
            self.optimizer = optax.sgd(RATE)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SFTTrainer, {"optimizers": (optax.sgd(RATE), RATE)}),
        (SFTTrainer, {"optimizers": (None, RATE), "optim": "sgd"}),
        (SFTTrainer, {"optim": "sgd"}),
        (Returns, {}),
        (Sets, {"lr_scheduler_type": "cosine"}),
    ],
    ids=["both", "schedule", "neither", "returns", "sets"],
)
def test_every_way_to_an_optimizer_gives_that_optimizer(
    adapted_once: LanguageModel, kind: type, options: dict[str, Any]
) -> None:
    trainer = trainer_of(adapted_once, kind=kind, **{**SGD, **options})
    tx, gradient = trainer._prepare_optimizer(3), {"A": np.ones(2, np.float32)}
    assert trainer.optimizer is tx
    state = tx.init(gradient)
    for count in range(4):
        updates, state = tx.update(gradient, state, gradient)
        limit = tolerance("float32", "schedule")
        assert relative_error(updates["A"], np.full(2, -RATE(count))) <= limit
        assert relative_error(trainer.lr_scheduler(count), RATE(count)) <= limit


def test_each_run_has_a_schedule_of_its_own(adapted_once: LanguageModel) -> None:
    trainer = trainer_of(adapted_once, **SGD, optim="sgd")
    first = trainer._prepare_optimizer(3)
    assert trainer.lr_scheduler(3) == 0
    assert trainer._prepare_optimizer(6) is not first
    assert trainer.lr_scheduler(3) == pytest.approx(1e-2)


def test_an_optimizer_given_alone_trains_and_its_rate_is_not_known(oracle: Oracle) -> None:
    by_name = trainer_of(adapted(oracle), **SGD, optim="sgd")
    own = trainer_of(adapted(oracle), **SGD, optimizers=(optax.sgd(RATE), None))
    for trainer in (by_name, own):
        trainer.train()
    for mine, expected in zip(records_of(own), records_of(by_name), strict=True):
        assert expected.pop("learning_rate") > 0
        assert mine == pytest.approx(expected, rel=tolerance("float32", "sgd_steps"))


def test_an_optimizer_needs_its_schedule_first(adapted_once: LanguageModel) -> None:
    trainer = trainer_of(adapted_once)
    with pytest.raises(ValueError, match="`lr_scheduler` is None until"):
        trainer.create_optimizer()
    trainer.lr_scheduler = trainer.create_scheduler(10)
    assert callable(trainer.create_optimizer().update)


def test_a_callback_of_transformers_and_the_control_that_it_returns_count(oracle: Oracle) -> None:
    class Stopper(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return dataclasses.replace(control, should_training_stop=True)

    assert trainer_of(adapted(oracle), callbacks=[Stopper()]).train().global_step == 1


def test_the_models_dtype_wins_and_a_line_says_so(
    oracle: Oracle, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(adapted(oracle), fp16=True, max_steps=1, disable_tqdm=False)
    trainer.train()
    printed = capsys.readouterr().out
    assert "float16 was asked for; the model has float32, and is trained in it" in printed
    assert trainer.model.dtype == "float32"
