"""Dynamic loss scaling against torch's own, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxtune.optim.loss_scale import LossScaleState, all_finite, dynamic_loss_scale
from tests.tolerances import relative_error, tolerance

# What a step's gradient holds: growth after 3 clean steps, two overflows in a row, NaN, growth.
GRADIENTS = [1.0, 2.0, 3.0, 1.0, np.inf, -np.inf, 2.0, np.nan, 1.0, 1.0, 1.0, 4.0]
INTERVAL = 3


def torch_run() -> tuple[list[float], list[float]]:
    """Scale and parameter after each step; each loss is gradient * parameter."""
    p = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01)
    scaler = torch.amp.GradScaler("cpu", growth_interval=INTERVAL)
    scales, values = [], []
    for gradient in GRADIENTS:
        optimizer.zero_grad()
        scaler.scale(p * gradient).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        values.append(p.item())
    return scales, values


@pytest.mark.parity
def test_scale_and_parameters_follow_torchs() -> None:
    inner = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    tx = dynamic_loss_scale(inner, INTERVAL)

    @jax.jit
    def step(p: jax.Array, state: LossScaleState, gradient: jax.Array) -> tuple:
        scaled = jax.grad(lambda q: q * gradient * state.scale)(p) / state.scale
        updates, state = tx.update(scaled, state, p)
        return optax.apply_updates(p, updates), state

    p = jnp.float32(1.0)
    state = tx.init(p)
    scales, values, skipped = [], [], []
    for gradient in GRADIENTS:
        p, state = step(p, state, jnp.float32(gradient))
        scales.append(float(state.scale))
        values.append(float(p))
        skipped.append(int(state.skipped))
    expected_scales, expected_values = torch_run()
    assert scales == expected_scales
    assert 2.0**16 in scales  # halved and grown again
    assert max(scales) == 2.0**17
    assert relative_error(values, expected_values) <= tolerance("float32", "optimizer_step")
    assert skipped == np.cumsum(~np.isfinite(GRADIENTS)).tolist()


def test_a_schedule_does_not_move_on_a_step_that_is_left_out() -> None:
    tx = dynamic_loss_scale(optax.scale_by_schedule(lambda count: -(count + 1.0)))
    p = jnp.float32(0.0)
    state = tx.init(p)
    found = []
    for gradient in (1.0, np.inf, 1.0):
        updates, state = tx.update(jnp.float32(gradient), state, p)
        found.append(float(updates))
    assert found == [-1.0, 0.0, -2.0]


def test_one_bad_number_in_any_leaf_is_seen() -> None:
    assert all_finite({})
    assert all_finite({"a": jnp.ones(3), "b": jnp.zeros(2)})
    assert not all_finite({"a": jnp.ones(3), "b": jnp.array([0.0, jnp.nan])})
