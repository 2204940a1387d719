"""What is due after a step or an epoch is what transformers says."""

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.training.config import SFTConfig
from jaxtune.training.flow import ask_for_what_is_due
from jaxtune.training.state import TrainerControl, TrainerState

INTERVAL = st.sampled_from(["no", "steps", "epoch"])
STEPS = st.integers(1, 7)


@pytest.mark.parity
@given(
    event=st.sampled_from(["on_step_end", "on_epoch_end"]),
    step=st.integers(1, 20),
    max_steps=st.integers(1, 20),
    kinds=st.tuples(INTERVAL, INTERVAL, st.sampled_from(["no", "steps", "epoch", "best"])),
    steps=st.tuples(STEPS, STEPS, STEPS),
    delay=st.sampled_from([0, 2, 3.5, 9]),
    first=st.booleans(),
)
def test_what_is_due_is_due_in_transformers(event, step, max_steps, kinds, steps, delay, first):
    numbers = dict(zip(("logging_steps", "eval_steps", "save_steps"), steps, strict=True))
    state = TrainerState(global_step=step, max_steps=max_steps, epoch=step / 4, **numbers)
    args = SFTConfig(
        output_dir="out",
        logging_strategy=kinds[0],
        eval_strategy=kinds[1] if kinds[2] != "best" else "steps",
        save_strategy=kinds[2],
        metric_for_best_model="loss",
        logging_first_step=first,
        eval_delay=delay,
    )
    theirs, ours = transformers.TrainerControl(), TrainerControl()
    getattr(transformers.trainer_callback.DefaultFlowCallback(), event)(args, state, theirs)
    ask_for_what_is_due(event, args, state, ours)
    for flag in ("should_training_stop", "should_evaluate", "should_save", "should_epoch_stop"):
        assert getattr(ours, flag) == getattr(theirs, flag), flag
    # A record of the last step is ours.
    last = event == "on_step_end" and step >= max_steps and kinds[0] == "steps"
    assert ours.should_log == (theirs.should_log or last)
