"""A resumed run is the run that was not interrupted, bit for bit; what does not fit is refused."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jaxtune import EarlyStoppingCallback, SFTTrainer, TrainerCallback
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import LanguageModel
from jaxtune.models.build import train_all
from jaxtune.training.checkpoint import checkpoints
from jaxtune.training.named_leaves import named_leaves
from tests.families import VARIANTS
from tests.jaxtune.training.runs import records_of, trainer_of
from tests.jaxtune.training.saved import arrays_of
from tests.loaded import load_base
from tests.oracles import Oracle, make_oracle
from tests.words import ragged_rows, word_tokenizer


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("resumed"), initializer_range=0.3)


def made(oracle: Oracle, dtype: str = "float32", **lora: Any) -> LanguageModel:
    """The base with a new adapter; without options, every weight trained."""
    model = load_base(oracle.folder, dtype)
    model.carried.tokenizer = word_tokenizer()
    if lora:
        return FastLanguageModel.get_peft_model(model, **lora)
    train_all(model)
    model.carried.full_finetuning = True
    return model


LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
DROPOUT = {**LORA, "lora_dropout": 0.5}
WHOLE = {**LORA, "modules_to_save": ["lm_head"], "rank_pattern": {"layers.1.mlp.down_proj": 2}}
# All of it in one, since a run costs seconds; then each by itself.
MIXED = {**DROPOUT, "r": 64, "rank_pattern": {"layers.1.mlp.down_proj": 2}}


class Patient(EarlyStoppingCallback):
    """Made anew for each trainer; the run ends before it does."""

    def __init__(self) -> None:
        super().__init__(early_stopping_patience=9)


EVALUATED = {
    "eval_dataset": ragged_rows(5, seed=2),
    "eval_strategy": "steps",
    "eval_steps": 1,
    "logging_steps": 2,
}
BEST = {
    **EVALUATED,
    "callbacks": [Patient],
    "load_best_model_at_end": True,
    "metric_for_best_model": "mean_token_accuracy",
}
# What is trained, and with what options; 13 rows make 4 windows an epoch, the last one short.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixed": (MIXED, {"optim": "adamw_8bit", "logging_steps": 3}),
    "plain": (LORA, {"gradient_accumulation_steps": 1}),
    "accumulated, 8-bit states, short records": (
        {**LORA, "r": 64},
        {"optim": "adamw_8bit", "logging_steps": 3},
    ),
    "dropout": (DROPOUT, {}),
    "float16": ({**LORA, "dtype": "float16"}, {}),
    "noise": (LORA, {"neftune_noise_alpha": 5.0}),
    "whole weights and ranks in bfloat16": ({**WHOLE, "dtype": "bfloat16"}, {}),
    "full, 8-bit states, bfloat16": ({"dtype": "bfloat16"}, {"optim": "adamw_8bit"}),
    "lion, constant": (LORA, {"optim": "lion_8bit", "lr_scheduler_type": "constant_with_warmup"}),
    "full, epochs": ({}, {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch"}),
    "adafactor": (LORA, {"optim": "adafactor"}),
    "paged": (LORA, {"optim": "paged_adamw_8bit"}),
    "evaluated": ({**LORA, "lora_dropout": 0.5}, EVALUATED),
    # The first evaluation stays the best, so that the callback counts all others.
    "best model, early stopping": (
        LORA,
        {**BEST, "metric_for_best_model": "loss", "greater_is_better": True},
    ),
    "best model of whole weights": (WHOLE, BEST),
    "each epoch evaluated": (
        LORA,
        {"eval_dataset": ragged_rows(5, seed=2), "eval_strategy": "epoch", "save_steps": 4},
    ),
    "grouped by length, the rest dropped": (
        LORA,
        {"train_sampling_strategy": "group_by_length", "dataloader_drop_last": True},
    ),
}
# 13 rows of a stream in another order each pass, packed in the one run and not in the other.
STREAM = datasets.Dataset.from_list(ragged_rows(13)).to_iterable_dataset()
STREAM = STREAM.shuffle(seed=5, buffer_size=4)
RUNS |= {
    "streaming": (DROPOUT, {"train_dataset": STREAM, "save_steps": 2}),
    "streaming, packed": (
        LORA,
        {"train_dataset": STREAM, "packing": True, "max_length": 40, "padding_free": True},
    ),
}
QUICK = ["mixed", "streaming"]


def finished(trainer: SFTTrainer) -> dict[str, np.ndarray]:
    """Every trained value, bit for bit."""
    named = named_leaves(nnx.state(trainer.model, nnx.Param))
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def untimed(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what a clock says."""
    timed = ("runtime", "per_second")
    return [
        {name: value for name, value in record.items() if not name.endswith(timed)}
        for record in records
    ]


def assert_same_run(one: Path, other: Path, *trainers: SFTTrainer) -> None:
    """Parameters, optimizer states, records and summaries of two runs are the same."""
    first, second = (finished(trainer) for trainer in trainers)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    records = [untimed(trainer.state.log_history) for trainer in trainers]
    assert records[0] == records[1]
    for field in ("best_metric", "best_global_step", "stateful_callbacks"):
        assert getattr(trainers[0].state, field) == getattr(trainers[1].state, field)
    for field in ("epoch", "global_step", "num_input_tokens_seen", "total_flos"):
        assert getattr(trainers[0].state, field) == getattr(trainers[1].state, field)
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in trainers]
    assert losses[0] == losses[1]
    mine, theirs = arrays_of(one), arrays_of(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS]
)
def test_a_resumed_run_is_the_uninterrupted_one(oracle: Oracle, tmp_path: Path, name: str) -> None:
    """Seven steps; and as far as the first checkpoint, then a new model and trainer, to the end."""
    model, options = RUNS[name]
    options = {"save_steps": 3, **options}
    whole = trainer_of(made(oracle, **model), output_dir=tmp_path / "whole", **options)
    whole.train()
    first, *_, last = (folder.name for folder in checkpoints(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole" / first, tmp_path / "half" / first)
    half = trainer_of(made(oracle, **model), output_dir=tmp_path / "half", **options)
    half.train(resume_from_checkpoint=True)
    assert_same_run(tmp_path / "whole" / last, tmp_path / "half" / last, whole, half)


@pytest.fixture(scope="module")
def saved(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: 2 steps of 8-bit states, a checkpoint of each."""
    folder = tmp_path_factory.mktemp("saved")
    trainer_of(made(oracle, **LORA), **SHORT, output_dir=folder, save_steps=1).train()
    return folder


SHORT = {"max_steps": 2, "optim": "adamw_8bit"}


def refused(model: LanguageModel, resumed: Any, message: str, **options: Any) -> None:
    """The request is refused before the optimizer is made or a step is compiled."""
    trainer = trainer_of(model, **{**SHORT, **options})
    before = finished(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=resumed)
    assert trainer.state.global_step == 0
    for name, value in finished(trainer).items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "lion_8bit"}, "optim='lion_8bit', saved by 'adamw_8bit'; got .* wanted"),
        ({"optim": "sgd"}, "optim='sgd', saved by 'adamw_8bit'"),
        ({"seed": 12}, "got seed=12; wanted seed=11"),
        ({"gradient_accumulation_steps": 1}, "got gradient_accumulation_steps=1; wanted"),
        ({"train_dataset": ragged_rows(13, seed=1)}, "got data=.*; wanted data="),
        ({"max_steps": 1}, "got 1 steps and a checkpoint of step 2"),
    ],
)
def test_other_options_are_refused(
    oracle: Oracle, saved: Path, options: dict[str, Any], message: str
) -> None:
    refused(made(oracle, **LORA), saved / "checkpoint-2", message, **options)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({**LORA, "r": 8}, r"got shape \(4, .*wanted shape \(8, "),
        ({**LORA, "target_modules": ["q_proj"]}, "got shape .*wanted no tensor"),
        ({**LORA, "lora_alpha": 4}, "got a scale of 4.0 for .*wanted 1.0"),
        (DROPOUT, "have dropout or noise .*, or neither; got nothing for `dropout_key`"),
        ({}, "got an adapter's in"),
    ],
)
def test_another_adapter_is_refused(
    oracle: Oracle, saved: Path, lora: dict[str, Any], message: str
) -> None:
    refused(made(oracle, **lora), saved / "checkpoint-2", message)


DAMAGE = {
    "adapter_model.safetensors": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "trainer_state.json": lambda data: data[:-9],
    "resume.json": lambda data: data[:-9],
    "resume/manifest.ocdbt": lambda _: None,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused(
    oracle: Oracle, saved: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(saved / "checkpoint-2", tmp_path / "checkpoint-2")
    changed = DAMAGE[name]((folder / name).read_bytes())
    (folder / name).unlink()
    if changed is not None:
        (folder / name).write_bytes(changed)
    refused(made(oracle, **LORA), folder, Path(name).name)


def test_there_must_be_a_checkpoint(oracle: Oracle, tmp_path: Path) -> None:
    model = made(oracle, **LORA)
    refused(model, True, "needs a folder checkpoint-N in `output_dir`; got none in None")
    refused(model, True, "got none in '.*'", output_dir=tmp_path)
    refused(model, tmp_path / "missing", "must be a folder; got '.*missing'")


def test_a_folder_of_weights_alone_gives_them_and_says_what_is_lost(
    oracle: Oracle, saved: Path, tmp_path: Path
) -> None:
    """It begins at step 0 with these weights, like a run of the model that was loaded so."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(saved / "checkpoint-2" / name, folder)
    trainer = trainer_of(made(oracle, **LORA), max_steps=1, warmup_steps=1)
    with pytest.warns(UserWarning, match="optimizer's state, the step and the place in the data"):
        trainer.train(resume_from_checkpoint=str(folder))
    trainer.save_model(tmp_path / "after")  # the first step of a warm-up changes nothing
    files = (place / "adapter_model.safetensors" for place in (tmp_path / "after", folder))
    after, before = map(load_file, files)
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)


@pytest.mark.slow
def test_a_full_model_resumes_from_weights_alone(oracle: Oracle, tmp_path: Path) -> None:
    options = {"max_steps": 1, "output_dir": tmp_path, "save_only_model": True}
    first = trainer_of(made(oracle), **options, warmup_steps=0)
    first.train()
    assert not (tmp_path / "checkpoint-1" / "resume.json").exists()
    second = trainer_of(made(oracle), max_steps=1, warmup_steps=1)
    with pytest.warns(UserWarning, match="begins at step 0"):
        second.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    mine, theirs = finished(first), finished(second)
    for name, value in mine.items():
        np.testing.assert_array_equal(value, theirs[name])


def test_a_run_that_is_done_makes_no_step(oracle: Oracle, saved: Path) -> None:
    trainer = trainer_of(made(oracle, **LORA), **SHORT)
    output = trainer.train(resume_from_checkpoint=saved / "checkpoint-2")
    assert output.global_step == 2
    assert output.metrics["train_steps_per_second"] == 0
    assert output.training_loss == np.mean([record["loss"] for record in records_of(trainer)])


class Interrupts(TrainerCallback):
    """Stops the run in the middle of an evaluation."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_prediction_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "options"),
    [(3, {}), (4, {"eval_strategy": "epoch", "save_strategy": "epoch"})],
    ids=["step", "epoch"],
)
def test_an_evaluation_that_was_cut_off_is_made_by_the_resumed_run(
    oracle: Oracle, tmp_path: Path, step: int, options: dict[str, Any]
) -> None:
    """Stopped while step 3, or the first epoch, is evaluated; and a run that was not."""
    options = {**BEST, "save_steps": 1, **options}
    whole = trainer_of(made(oracle, **LORA), output_dir=tmp_path / "whole", **options)
    whole.train()
    options |= {"output_dir": tmp_path / "half"}
    stopped = {**options, "callbacks": [Patient, Interrupts(step)]}
    with pytest.raises(KeyboardInterrupt):
        trainer_of(made(oracle, **LORA), **stopped).train()
    half = trainer_of(made(oracle, **LORA), **options)
    half.train(resume_from_checkpoint=True)
    folders = [[its.name for its in checkpoints(tmp_path / name)] for name in ("whole", "half")]
    assert folders[0] == folders[1]
    last = folders[0][-1]
    assert_same_run(tmp_path / "whole" / last, tmp_path / "half" / last, whole, half)


@pytest.mark.slow
def test_a_best_checkpoint_that_is_gone_is_named(oracle: Oracle, tmp_path: Path) -> None:
    options = {**BEST, "save_steps": 1, "output_dir": tmp_path, "max_steps": 2}
    trainer = trainer_of(made(oracle, **LORA), **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    (tmp_path / "checkpoint-2").rename(tmp_path / "moved")
    if best.exists():
        shutil.rmtree(best)
    with pytest.warns(UserWarning, match="was the best checkpoint and is gone"):
        trainer.train(resume_from_checkpoint=tmp_path / "moved")
    assert trainer.state.best_model_checkpoint is None
