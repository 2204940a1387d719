"""Learning rates step by step, against transformers' schedulers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxtune.optim.schedules import SCHEDULES, create_schedule
from tests.tolerances import relative_error, tolerance

PEAK = 2e-4
CASES = [(0, 60), (5, 60), (60, 60), (59, 60), (0, 1), (1, 1), (7, 5), (0, 2)]


# Where a schedule needs options, or is worth a look with some.
OPTIONS = {
    "cosine_with_min_lr": [{"min_lr": 1e-5}, {"min_lr_rate": 0.2, "num_cycles": 1.5}],
    "cosine_with_restarts": [{}, {"num_cycles": 3}],
    "polynomial": [{}, {"lr_end": 1e-5, "power": 2.5}],
    "inverse_sqrt": [{}, {"timescale": 9}],
    "warmup_stable_decay": [
        {"num_decay_steps": 9},
        {"num_decay_steps": 12, "num_stable_steps": 3, "min_lr_ratio": 0.1},
        {"num_decay_steps": 20, "warmup_type": "cosine", "decay_type": "1-sqrt"},
        {"num_decay_steps": 20, "warmup_type": "1-sqrt", "decay_type": "linear"},
    ],
}
NAMED = [(name, each) for name in SCHEDULES for each in OPTIONS.get(name, [{}])]

RUNS = [
    (name, options, warmup_steps, total_steps)
    for name, options in NAMED
    for warmup_steps, total_steps in CASES
    # There transformers divides by zero; "constant" has no warm-up.
    if name != "constant" and (name != "polynomial" or warmup_steps < total_steps)
]


def theirs(name, warmup_steps, total_steps, options=None):
    """The rate of each update, as the optimizer of a transformers run has it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = transformers.get_scheduler(
        name, optimizer, warmup_steps, total_steps, scheduler_specific_kwargs=options
    )
    rates = []
    for _ in range(total_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return [*rates, scheduler.get_last_lr()[0]]


def ours(name, warmup_steps, total_steps, options=None):
    schedule = create_schedule(name, PEAK, warmup_steps, total_steps, options)
    return [float(schedule(jnp.int32(n))) for n in range(total_steps + 1)]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps")
@pytest.mark.parametrize(("name", "options", "warmup_steps", "total_steps"), RUNS)
def test_equals_transformers_at_every_step(name, options, warmup_steps, total_steps):
    expected = theirs(name, warmup_steps, total_steps, options)
    found = ours(name, warmup_steps, total_steps, options)
    assert relative_error(found, expected, PEAK) <= tolerance("float32", "schedule")


@pytest.mark.parity
@pytest.mark.parametrize("total_steps", [1, 60])
def test_constant_equals_transformers(total_steps):
    expected = theirs("constant", 0, total_steps)
    found = ours("constant", 0, total_steps)
    assert relative_error(found, expected) <= tolerance("float32", "schedule")


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_starts_at_zero_and_ends_at_zero(name):
    rates = ours(name, 5, 20)
    assert (rates[0], rates[5], rates[20]) == (0.0, np.float32(PEAK), 0.0)


def test_linear_stays_at_zero_after_the_end():
    assert float(create_schedule("linear", PEAK, 5, 20)(25)) == 0.0


def test_constant_with_warmup_stays_after_the_end():
    assert float(create_schedule("constant_with_warmup", PEAK, 5, 20)(25)) == np.float32(PEAK)


@pytest.mark.parametrize("warmup_steps", [1, 5])
def test_constant_refuses_a_warm_up(warmup_steps):
    with pytest.raises(ValueError, match=r"has no warm-up; got one\. .*'constant_with_warmup'"):
        create_schedule("constant", PEAK, warmup_steps, 60)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"one of \['constant', .*'linear', .*\]; got 'cosin'"):
        create_schedule("cosin", PEAK, 0, 60)


@pytest.mark.parity
def test_every_name_is_transformers_own():
    assert set(SCHEDULES) <= {kind.value for kind in transformers.SchedulerType}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"num_cycles": 1}, r"'linear' may have no keys; got \['num_cycles'\]"),
        ("polynomial", {"end": 1}, r"may have \['lr_end', 'power'\]; got \['end'\]"),
        ("polynomial", {"lr_end": 1.0}, "`lr_end` must be below `learning_rate`"),
        ("cosine_with_min_lr", {}, "needs one of `min_lr` and `min_lr_rate`; got None and None"),
        ("warmup_stable_decay", {}, "needs `num_decay_steps`"),
        ("warmup_stable_decay", {"num_decay_steps": 2, "decay_type": "sqrt"}, "`decay_type` must"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_schedule(name, PEAK, 0, 60, options)
