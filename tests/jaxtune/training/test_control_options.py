"""When things happen: ranges, contradictions, and what follows from what."""

from typing import Any

import pytest
import transformers

from jaxtune.errors import NotBuiltYetError
from jaxtune.training.config import SFTConfig
from jaxtune.training.control_options import with_derived

BEST = {"output_dir": "out", "load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logging_strategy": "often"}, r"`logging_strategy` must be one of .*'no', 'steps'"),
        ({"eval_strategy": "best"}, "`eval_strategy` must be one of .* got 'best'"),
        ({"train_sampling_strategy": "batch_rebalance"}, "one of .*'group_by_length'"),
        ({"logging_steps": 1.5}, "`logging_steps` must be whole and > 0, or a share below 1"),
        ({"eval_steps": 0}, "`eval_steps` must be whole and > 0, or a share below 1; got 0"),
        ({"eval_delay": -1}, "`eval_delay` must be >= 0; got -1"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be > 0; got 0"),
        (
            {"group_by_length": True, "train_sampling_strategy": "sequential"},
            "two names of one choice",
        ),
        (BEST, "`load_best_model_at_end` needs evaluations to compare"),
        ({**BEST, "eval_strategy": "epoch"}, "must be the same, .*; got 'steps' and 'epoch'"),
        (
            {**BEST, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 4},
            "`save_steps` must be a multiple of `eval_steps`; got 4 and 3",
        ),
        (
            {**BEST, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 4},
            "must be a multiple of `eval_steps`; got 4 and 0.1",
        ),
        (
            {"output_dir": "out", "save_strategy": "best"},
            "`save_strategy='best'` needs eval",
        ),
        (
            {"output_dir": "out", "save_strategy": "best", "eval_strategy": "epoch"},
            "`save_strategy`='best' needs `metric_for_best_model`; got None",
        ),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SFTConfig(**options)


def test_packed_evaluations_are_not_built() -> None:
    assert SFTConfig(eval_packing=False).eval_packing is False
    with pytest.raises(NotBuiltYetError, match="`eval_packing` is not built; got True"):
        SFTConfig(eval_packing=True)


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 4},
        {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3},
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "best"},
    ],
)
def test_intervals_that_meet_are_taken(options: dict[str, Any]) -> None:
    assert with_derived(SFTConfig(**BEST, **options)).metric_for_best_model == "loss"


def test_either_name_groups_by_length() -> None:
    assert SFTConfig().sampling == "random"
    assert SFTConfig(group_by_length=True).sampling == "group_by_length"
    assert SFTConfig(train_sampling_strategy="group_by_length").sampling == "group_by_length"


@pytest.mark.parity
@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("metric", [None, "loss", "accuracy"])
@pytest.mark.parametrize("greater", [None, False])
def test_what_follows_is_what_transformers_fills_in(load, metric, greater):
    options = {
        "output_dir": "out",
        "eval_strategy": "steps",
        "logging_steps": 5,
        "save_steps": 10,
        "load_best_model_at_end": load,
        "metric_for_best_model": metric,
        "greater_is_better": greater,
    }
    theirs = transformers.TrainingArguments(**options, use_cpu=True)
    ours = with_derived(SFTConfig(**options))
    for name in ("eval_steps", "metric_for_best_model", "greater_is_better"):
        assert getattr(ours, name) == getattr(theirs, name), name
