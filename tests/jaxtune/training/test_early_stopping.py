"""Ours stops where transformers' own callback stops, and a checkpoint keeps its count."""

from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxtune import EarlyStoppingCallback, SFTConfig
from jaxtune.training.best_model import note_best
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.control_options import with_derived
from jaxtune.training.state import TrainerState

BASE: dict[str, Any] = {"eval_strategy": "steps", "metric_for_best_model": "loss"}


def stopped_at(callback: Any, args: SFTConfig, values: list[float]) -> tuple[int, float | None]:
    """The number of the evaluation that ends the run, 0 for none; and the best metric."""
    handler = CallbackHandler([callback], args)
    handler.tell("on_train_begin")
    for number, value in enumerate(values, start=1):
        handler.state.global_step = number
        handler.tell("on_evaluate", metrics={"eval_loss": value})
        note_best(args, handler.state, {"eval_loss": value})
        if handler.control.should_training_stop:
            return number, handler.state.best_metric
    return 0, handler.state.best_metric


@pytest.mark.parity
@given(
    st.lists(st.sampled_from([0.5, 0.8, 1.0, 1.05, 1.5]), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
)
def test_it_stops_where_transformers_does(values, patience, threshold, greater):
    args = with_derived(SFTConfig(**BASE, greater_is_better=greater))
    mine, theirs = (
        kind(early_stopping_patience=patience, early_stopping_threshold=threshold)
        for kind in (EarlyStoppingCallback, transformers.EarlyStoppingCallback)
    )
    expected = stopped_at(theirs, args, values)
    assert stopped_at(mine, args, values) == expected
    assert mine.state() == theirs.state()
    best = (np.maximum if greater else np.minimum).reduce(values[: expected[0] or None])
    assert expected[1] == best


def test_a_resumed_run_goes_on_counting() -> None:
    saved = CallbackHandler([EarlyStoppingCallback(3)], SFTConfig())
    saved.callbacks[0].early_stopping_patience_counter = 2
    states = saved.states()
    resumed = CallbackHandler([EarlyStoppingCallback(5)], SFTConfig())
    resumed.restore(states)
    assert resumed.callbacks[0].early_stopping_patience_counter == 2
    assert resumed.callbacks[0].early_stopping_patience == 5
    with pytest.warns(UserWarning, match="state of a callback EarlyStoppingCallback; this run has"):
        CallbackHandler([], SFTConfig()).restore(states)


def test_a_metric_that_is_no_number_is_never_the_best() -> None:
    args, state = with_derived(SFTConfig(**BASE)), TrainerState()
    assert not note_best(args, state, {"eval_loss": float("nan")})
    assert note_best(args, state, {"eval_loss": 2.0})
    with pytest.raises(ValueError, match=r"got 'loss', and there are \['eval_x'\]"):
        note_best(args, state, {"eval_x": 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got eval_strategy='no' and metric_for_best_model=None"),
        ({"eval_strategy": "epoch"}, "got eval_strategy='epoch' and metric_for_best_model=None"),
    ],
)
def test_a_run_without_a_metric_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CallbackHandler([EarlyStoppingCallback], SFTConfig(**options)).tell("on_train_begin")


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="`early_stopping_patience` must be at least 1; got 0"):
        EarlyStoppingCallback(0)
    with pytest.raises(ValueError, match="`early_stopping_threshold` must be >= 0; got -1"):
        EarlyStoppingCallback(1, -1.0)
