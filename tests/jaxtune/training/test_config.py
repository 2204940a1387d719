"""The options: defaults, ranges, contradictions, and that none of them is ignored."""

import ast
import dataclasses
import functools
import types
from pathlib import Path

import pytest
import transformers
import trl
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.training.config import SFTConfig, UnslothTrainingArguments
from jaxtune.training.script_arguments import ScriptArguments

ROOT = Path(__file__).parents[3]
SCRIPTS = {field.name for field in dataclasses.fields(ScriptArguments)}  # have tests of their own
FIELDS = [f.name for f in dataclasses.fields(SFTConfig) if f.name not in SCRIPTS]

UNSLOTHS = {"embedding_learning_rate": None, "q_galore_config": None}

# The documented table: Unsloth's value where it overrides TRL's, or ours, and why.
OVERRIDDEN = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,
    "weight_decay": 0.001,
    "seed": 3407,
    "logging_steps": 1,
    "optim": "adamw_8bit",
    "max_length": None,  # the model's own `max_seq_length`, as in Unsloth
    "save_strategy": None,  # "steps", where there is a folder to save to
    "per_device_eval_batch_size": 4,
    "resplit": True,
    "bad_rows": "refuse",
    "long_rows": "cut",
}
# Re-splitting changes no number; rows that cannot be learned are named, long ones cut as in TRL.
OURS = {"mesh", "resplit", "bad_rows", "long_rows"}
# Older names; None or False.
NOT_TRLS = {"max_seq_length", "warmup_ratio", "disable_tqdm", "group_by_length", "logging_dir"}


@pytest.mark.parametrize(("name", "value"), OVERRIDDEN.items())
def test_default_is_the_documented_one(name, value):
    assert getattr(SFTConfig(), name) == value


def test_unsloths_arguments_are_the_same_and_its_own_are_off():
    ours = dataclasses.asdict(UnslothTrainingArguments())
    assert ours == {**dataclasses.asdict(SFTConfig()), **UNSLOTHS}


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(set(FIELDS) - set(OVERRIDDEN) - NOT_TRLS - OURS))
def test_every_other_default_is_trls(name):
    theirs = {field.name: field.default for field in dataclasses.fields(trl.SFTConfig)}
    default = theirs[name]
    assert getattr(SFTConfig(), name) == getattr(default, "value", default)


@pytest.mark.parametrize("name", sorted(NOT_TRLS))
def test_older_names_are_off_by_default(name):
    assert not getattr(SFTConfig(), name)


@pytest.mark.parity
def test_every_name_is_trls_or_its_history():
    theirs = {field.name for field in dataclasses.fields(trl.SFTConfig)}
    older = {"max_seq_length", "warmup_ratio", "group_by_length", "logging_dir"}
    assert set(FIELDS) - theirs == {*older, *OURS}


@functools.cache
def attributes_read():
    """Every attribute that the library reads somewhere, the declaration left out."""
    trees = [ast.parse(file.read_text()) for file in (ROOT / "jaxtune").rglob("*.py")]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and getattr(node.value, "attr", getattr(node.value, "id", None)) in ("args", "self")
    }


@pytest.mark.parametrize("name", [*FIELDS, *UNSLOTHS])
def test_every_option_is_read_somewhere(name):
    """An option that is accepted and ignored is a lie."""
    assert name in attributes_read()


POSITIVE = [
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "logging_steps",
    "save_steps",
]
WRONG = [
    *[(name, value, "> 0") for name in POSITIVE for value in (0, -1)],
    ("num_train_epochs", float("nan"), "> 0"),
    ("learning_rate", -1e-5, ">= 0"),
    ("learning_rate", float("nan"), ">= 0"),
    ("weight_decay", -0.1, ">= 0"),
    ("max_grad_norm", -1.0, ">= 0"),
    ("warmup_steps", -1, ">= 0"),
    ("seed", -1, ">= 0"),
    ("max_steps", 0, "> 0 or -1"),
    ("max_steps", -2, "> 0 or -1"),
    ("max_length", 0, "> 0 or None"),
    ("max_seq_length", -5, "> 0 or None"),
    ("dataset_num_proc", 0, "> 0 or None"),
    ("save_steps", float("inf"), "whole, or a share below 1"),
    ("save_steps", 1.5, "whole, or a share below 1"),
    ("warmup_ratio", -0.1, r"in \[0, 1\)"),
    ("warmup_ratio", 1.0, r"in \[0, 1\)"),
    ("adam_beta1", 1.0, r"in \[0, 1\)"),
    ("adam_beta2", -0.1, r"in \[0, 1\)"),
    ("adam_epsilon", 0.0, "> 0"),
    ("adam_epsilon", -1e-8, "> 0"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), WRONG)
def test_rejects_what_is_out_of_range(name, value, wanted):
    with pytest.raises(ValueError, match=rf"`{name}` must be {wanted}; got {value}"):
        SFTConfig(**{name: value})


EDGES = {
    "learning_rate": 0.0,
    "max_grad_norm": 0.0,
    "warmup_steps": 0,
    "warmup_ratio": 0.0,
    "max_steps": -1,
    "seed": 0,
    "adam_beta1": 0.0,
    "max_length": 1,
    "save_steps": 0.01,
}


@pytest.mark.parametrize(("name", "value"), EDGES.items())
def test_takes_the_edges_of_the_ranges(name, value):
    assert getattr(SFTConfig(**{name: value}), name) == value


def test_two_limits_must_agree():
    message = r"`max_length` and `max_seq_length` .* must agree; got 512 and 256\. Pass one"
    with pytest.raises(ValueError, match=message):
        SFTConfig(max_length=512, max_seq_length=256)


@pytest.mark.parametrize(
    ("given_", "limit"),
    [
        ({}, None),
        ({"max_length": 5}, 5),
        ({"max_seq_length": 6}, 6),
        ({"max_length": 7, "max_seq_length": 7}, 7),
    ],
)
def test_either_name_gives_the_limit(given_, limit):
    assert SFTConfig(**given_).row_limit == limit


# Unbound, since making a whole TrainingArguments takes longer than the question.
theirs_of = transformers.TrainingArguments.get_warmup_steps


@pytest.mark.parity
@given(st.floats(0, 1, exclude_max=True) | st.integers(1, 100), st.integers(1, 10_000))
def test_warmup_equals_transformers(warmup, total_steps):
    ours = SFTConfig(warmup_steps=warmup)
    assert ours.warmup(total_steps) == theirs_of(ours, total_steps)


@pytest.mark.parity
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 10_000))
def test_the_older_share_equals_transformers(ratio, total_steps):
    ours = SFTConfig(warmup_ratio=ratio, warmup_steps=5)
    theirs = theirs_of(SFTConfig(warmup_steps=ratio), total_steps)
    assert ours.warmup(total_steps) == theirs


def test_a_share_is_rounded_up():
    assert SFTConfig().warmup(60) == 6
    assert SFTConfig().warmup(61) == 7
    assert SFTConfig(warmup_steps=5).warmup(2) == 5


@pytest.mark.parametrize(
    ("given_", "saves"),
    [
        ({}, "no"),
        ({"output_dir": "out"}, "steps"),
        ({"output_dir": "out", "save_strategy": "no"}, "no"),
        ({"output_dir": "out", "save_strategy": "epoch"}, "epoch"),
        ({"save_strategy": "no"}, "no"),
    ],
)
def test_nothing_is_saved_without_a_place(given_, saves):
    assert SFTConfig(**given_).saves == saves


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_saving_needs_a_place(strategy):
    message = rf"`save_strategy`='{strategy}' needs `output_dir`; got None\. Pass"
    with pytest.raises(ValueError, match=message):
        SFTConfig(save_strategy=strategy)


def test_an_unknown_strategy_lists_the_known():
    known = r"one of \('no', 'steps', 'epoch', 'best'\) or None; got 'often'"
    with pytest.raises(ValueError, match=known):
        SFTConfig(output_dir="out", save_strategy="often")


@pytest.mark.parity
@given(
    st.sampled_from(["logging", "eval", "save"]),
    st.floats(0.001, 1, exclude_max=True) | st.integers(1, 100),
    st.integers(1, 10_000),
)
def test_intervals_equal_transformers(name, steps, total_steps):
    ours = SFTConfig(**{f"{name}_steps": steps})
    state = transformers.TrainerState()
    given_ = {"logging_steps": 1, "eval_steps": 1, "save_steps": 1, f"{name}_steps": steps}
    state.compute_steps(types.SimpleNamespace(**given_), total_steps)
    assert ours.interval(name, total_steps) == getattr(state, f"{name}_steps")


def test_options_are_frozen_and_by_name():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SFTConfig().seed = 1
    with pytest.raises(TypeError, match="positional"):
        SFTConfig("outputs")
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rat'"):
        SFTConfig(learning_rat=1e-4)


def test_two_dtypes_are_one_too_many():
    with pytest.raises(ValueError, match="`fp16` and `bf16` ask for two dtypes"):
        SFTConfig(fp16=True, bf16=True)
    assert SFTConfig(fp16=True, bf16=False).fp16
