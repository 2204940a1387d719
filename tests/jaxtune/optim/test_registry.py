"""Each optimizer against torch's of the same name, over ten steps of the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from jaxtune.optim.registry import OPTIMIZERS, create_optimizer
from jaxtune.optim.schedules import create_schedule
from tests.tolerances import relative_error, tolerance

STEPS = 10
WARM_UP = {"constant": 0, "linear": 3}
PEAK = 1e-2
HYPER = {"b1": 0.8, "b2": 0.95, "eps": 1e-4, "weight_decay": 0.1}
SHAPES = {"A": (3, 4), "B": (2, 5), "alone": ()}


@pytest.fixture
def inputs():
    """Parameters, and the gradients of each step over several orders of magnitude."""
    rng = np.random.default_rng(0)
    parameters = {k: rng.normal(size=shape) for k, shape in SHAPES.items()}
    gradients = [
        {k: rng.normal(size=shape) * 10.0 ** -(step % 4) for k, shape in SHAPES.items()}
        for step in range(STEPS)
    ]
    return parameters, gradients


def ours(name, inputs, hyper, dtype, schedule):
    parameters, gradients = jax.tree.map(lambda x: jnp.asarray(x, dtype), inputs)
    rate = create_schedule(schedule, PEAK, WARM_UP[schedule], STEPS)
    tx = create_optimizer(name, rate, **hyper)
    state = tx.init(parameters)
    update = jax.jit(tx.update)
    for gradient in gradients:
        updates, state = update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


def theirs(make, inputs, schedule):
    parameters, gradients = inputs
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in parameters.items()}
    optimizer = make(list(tensors.values()))
    scheduler = transformers.get_scheduler(schedule, optimizer, WARM_UP[schedule], STEPS)
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name], dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def torch_adamw(parameters):
    betas = (HYPER["b1"], HYPER["b2"])
    return torch.optim.AdamW(
        parameters, PEAK, betas, HYPER["eps"], weight_decay=HYPER["weight_decay"]
    )


def torch_sgd(parameters):
    return torch.optim.SGD(parameters, PEAK, weight_decay=HYPER["weight_decay"])


def their_adafactor(parameters):
    return transformers.optimization.Adafactor(
        parameters,
        PEAK,
        weight_decay=HYPER["weight_decay"],
        scale_parameter=False,
        relative_step=False,
    )


def their_lion(parameters):
    betas = (HYPER["b1"], HYPER["b2"])
    lion = pytest.importorskip("bitsandbytes").optim.Lion32bit
    return lion(parameters, PEAK, betas, weight_decay=HYPER["weight_decay"])


ORACLES = {
    "adafactor": their_adafactor,
    "adamw_torch": torch_adamw,
    "adamw_torch_fused": torch_adamw,
    "lion_32bit": their_lion,
    "sgd": torch_sgd,
}
IN_8_BITS = {"adamw_8bit", "adamw_bnb_8bit", "lion_8bit", "paged_adamw_8bit"}  # test_blockwise.py


@pytest.mark.parity
@pytest.mark.parametrize(("dtype", "schedule"), [("float64", "constant"), ("float32", "linear")])
@pytest.mark.parametrize("name", sorted(ORACLES))
def test_equals_torch(name, inputs, dtype, schedule):
    with jax.enable_x64(dtype == "float64"):
        found = ours(name, inputs, HYPER, dtype, schedule)
    expected = theirs(ORACLES[name], inputs, schedule)
    for leaf in SHAPES:
        assert found[leaf].dtype == dtype
        error = relative_error(found[leaf], expected[leaf])
        # bitsandbytes computes in float32.
        computed = "float32" if name == "lion_32bit" else dtype
        assert error <= tolerance(computed, "optimizer_step")


@pytest.mark.parity
def test_defaults_are_torchs_without_decay(inputs):
    found = ours("adamw_torch", inputs, {}, "float32", "linear")
    expected = theirs(lambda p: torch.optim.AdamW(p, PEAK, weight_decay=0.0), inputs, "linear")
    for leaf in SHAPES:
        error = relative_error(found[leaf], expected[leaf])
        assert error <= tolerance("float32", "optimizer_step")


def test_every_optimizer_has_an_oracle():
    assert set(OPTIMIZERS) == set(ORACLES) | IN_8_BITS


@pytest.mark.parity
def test_every_name_is_transformers_own():
    assert set(OPTIMIZERS) <= {kind.value for kind in transformers.training_args.OptimizerNames}


@pytest.mark.parametrize("name", ["adamw_9bit", "AdamW", ""])
def test_an_unknown_name_lists_the_known(name):
    message = rf"one of \['adafactor', 'adamw_8bit', .*'sgd'\]; got '{name}'\."
    with pytest.raises(ValueError, match=message):
        create_optimizer(name, optax.constant_schedule(1e-3))


def test_a_removed_name_says_what_to_use():
    with pytest.raises(ValueError, match=r"got 'adamw_hf', which it removed\. Use optim='adamw_t"):
        create_optimizer("adamw_hf", optax.constant_schedule(1e-3))


def test_a_zero_pair_stays_zero():
    """Rows that pad an adapter to the stack's rank are A = B = 0 with no gradient."""
    zeros = {"A": jnp.zeros((2, 3))}
    for name in OPTIMIZERS:
        tx = create_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.1)
        updates, _ = tx.update(zeros, tx.init(zeros), zeros)
        np.testing.assert_array_equal(updates["A"], zeros["A"])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_decay_spares_biases_and_norms(name):
    parameters = {leaf: jnp.ones(2) for leaf in ("q_proj.weight", "q_proj.bias", "norm.weight")}
    tx = create_optimizer(name, optax.constant_schedule(0.1), weight_decay=0.1)
    gradient = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = tx.update(gradient, tx.init(parameters), parameters)
    assert {leaf for leaf, update in updates.items() if update.any()} == {"q_proj.weight"}
