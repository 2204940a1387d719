"""Options of trl and transformers: taken over by name, or refused by name."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers
import trl

from jaxtune import SFTConfig, TrainingArguments, UnslothTrainingArguments
from jaxtune.training.foreign_arguments import DERIVED
from jaxtune.training.inputs import checked_args
from tests.jaxtune.training import trl_0_22

OURS = {field.name for field in dataclasses.fields(SFTConfig)}
GIVEN: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "warmup_steps": 5,
    "max_steps": 60,
    "learning_rate": 2e-4,
    "optim": "adamw_8bit",
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "seed": 3407,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "max_grad_norm": 0.3,
}
TRLS = {"max_length": 512, "packing": True, "dataset_text_field": "body", "dataset_num_proc": 2}


def made(kind: type, folder: Path, **given: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own deprecations
        return kind(output_dir=str(folder), use_cpu=True, report_to="none", **given)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "given"),
    [(transformers.TrainingArguments, GIVEN), (trl.SFTConfig, {**GIVEN, **TRLS})],
    ids=["transformers", "trl"],
)
def test_an_instance_is_taken_over(kind: type, given: dict[str, Any], tmp_path: Path) -> None:
    ours = checked_args(made(kind, tmp_path, **given))
    assert isinstance(ours, SFTConfig)
    assert {name: getattr(ours, name) for name in given} == given
    assert ours.output_dir == str(tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("kind", [transformers.TrainingArguments, trl.SFTConfig])
def test_its_defaults_hold(kind: type, tmp_path: Path) -> None:
    theirs = made(kind, tmp_path)
    ours = checked_args(theirs)
    assert ours.per_device_train_batch_size == 8
    assert ours.learning_rate == theirs.learning_rate
    assert ours.optim == theirs.optim.value
    assert ours.seed == 42
    assert ours.row_limit is None  # trl's 1024 is no request: the model's own limit holds
    assert ours.saves == "steps"


def test_the_recorded_fields_of_trl_0_22_are_taken_over() -> None:
    ours = checked_args(trl_0_22.filled_in(**GIVEN, **TRLS))
    assert {name: getattr(ours, name) for name in {**GIVEN, **TRLS}} == {**GIVEN, **TRLS}
    assert checked_args(trl_0_22.filled_in()).learning_rate == 2e-5


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 0),
        ({"warmup_ratio": 0.1}, 6),
        ({"warmup_steps": 5}, 5),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, 5),
    ],
)
def test_warmup_of_trl_0_22(given: dict[str, Any], steps: int) -> None:
    assert checked_args(trl_0_22.filled_in(**given)).warmup(60) == steps


def fields_not_ours() -> list[str]:
    theirs = set(trl_0_22.TRANSFORMERS) | set(trl_0_22.TRL)
    theirs |= {field.name for field in dataclasses.fields(trl.SFTConfig)}
    return sorted(theirs - OURS - DERIVED)


@pytest.mark.parametrize("name", fields_not_ours())
def test_a_field_that_nothing_serves_is_named(name: str) -> None:
    kind = dataclasses.make_dataclass(
        "Theirs", [(name, Any, None), ("per_device_train_batch_size", int, 8)]
    )
    assert checked_args(kind()) == SFTConfig(per_device_train_batch_size=8)
    message = rf"`{name}` of .*Theirs must be None, its default, .*; got .+\. Leave it out\."
    with pytest.raises(ValueError, match=message):
        checked_args(kind(**{name: "something"}))


def test_a_token_is_never_shown() -> None:
    for name in ("hub_token", "push_to_hub_token"):
        with pytest.raises(ValueError, match="not shown") as caught:
            checked_args(trl_0_22.filled_in(**{name: "hf_secret"}))
        assert "hf_secret" not in str(caught.value)


def test_a_rate_of_the_embedding_is_kept() -> None:
    theirs = trl_0_22.filled_in()
    theirs.embedding_learning_rate = 1e-5  # Unsloth's class keeps it outside the fields
    ours = checked_args(theirs)
    assert isinstance(ours, UnslothTrainingArguments)
    assert ours.embedding_learning_rate == 1e-5


def test_what_is_no_options_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`args` must be a jaxtune.SFTConfig .*got builtins.dict"):
        checked_args({"max_steps": 1})


@pytest.mark.parity
def test_our_training_arguments_have_transformers_defaults() -> None:
    theirs = {
        field.name: field.default for field in dataclasses.fields(transformers.TrainingArguments)
    }
    # None: "steps" where there is a folder; a plan of the model's; nothing is deprecated here.
    ours = {"save_strategy", "disable_tqdm", "bf16", "gradient_checkpointing"}
    for field in dataclasses.fields(TrainingArguments):
        if field.name in theirs and field.name not in ours:
            default = theirs[field.name]
            assert field.default == getattr(default, "value", default), field.name
