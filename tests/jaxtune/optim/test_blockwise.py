"""Optimizers with 8-bit states, on stacks, against bitsandbytes on the tensors one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import torch

from jaxtune.optim import adafactor, adamw_8bit, lion_8bit, paged
from jaxtune.optim.registry import create_optimizer
from tests.jaxtune.optim.adapter import RANKS, one_by_one, tree
from tests.tolerances import tolerance

bitsandbytes = pytest.importorskip("bitsandbytes")
RATE, DECAY, STEPS = 1e-2, 0.1, 20
IN_8_BITS = {"adamw": adamw_8bit, "lion": lion_8bit}
THEIRS = {"adamw": bitsandbytes.optim.AdamW8bit, "lion": bitsandbytes.optim.Lion8bit}
BETAS = {"b1": 0.9, "b2": 0.99}
each = pytest.mark.parametrize("kind", IN_8_BITS)


@pytest.fixture(scope="module")
def inputs():
    """Parameters, and gradients of each step; both are 0 where a stack is padded."""
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.normal(size=shape)  # noqa: E731
    return tree(draw), [jax.tree.map(lambda g: g * 0.01, tree(draw)) for _ in range(STEPS)]


def run(tx, parameters, gradients):
    # A function of its own, lest its cache be that of an earlier run.
    update = jax.jit(lambda *arguments: tx.update(*arguments))
    state = tx.init(parameters)
    for gradient in gradients:
        updates, state = update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    assert update._cache_size() == 1
    return parameters, state


def drift(actual, expected, start):
    """Root mean square of the difference, over that of the way that the tensor went."""
    apart, way = actual.astype(np.float64) - expected, expected.astype(np.float64) - start
    return np.sqrt((apart**2).mean() / (way**2).mean())


@each
def test_a_stack_is_its_tensors_one_by_one(kind, inputs):
    parameters, gradients = inputs
    made = IN_8_BITS[kind](RATE, **BETAS, weight_decay=DECAY, mask=None)
    stacked, _ = run(made, parameters, gradients)
    alone, _ = run(
        made,
        jax.tree.map(jnp.asarray, one_by_one(parameters)),
        [jax.tree.map(jnp.asarray, one_by_one(gradient)) for gradient in gradients],
    )
    for name, tensor in one_by_one(stacked).items():
        error = drift(tensor, np.asarray(alone[name]), one_by_one(parameters)[name])
        assert error <= tolerance("float32", "stack_of_tensors"), name


def test_padding_stays_zero(inputs):
    parameters, gradients = inputs
    for tx in (adamw_8bit(RATE, weight_decay=DECAY), adafactor(RATE, weight_decay=DECAY)):
        after, _ = run(tx, parameters, gradients[:3])
        projection = after["model"]["layers"]["proj"]
        for layer, rank in enumerate(RANKS):
            assert not np.asarray(projection["lora_A"])[layer, rank:].any()
            assert not np.asarray(projection["lora_B"])[layer, :, rank:].any()


def test_adafactor_on_a_stack_is_adafactor_on_its_tensors(inputs):
    parameters, gradients = inputs
    tx = adafactor(RATE, DECAY, mask=None)
    stacked, _ = run(tx, parameters, gradients[:5])
    alone, _ = run(
        tx,
        jax.tree.map(jnp.asarray, one_by_one(parameters)),
        [jax.tree.map(jnp.asarray, one_by_one(gradient)) for gradient in gradients[:5]],
    )
    for name, tensor in one_by_one(stacked).items():
        error = drift(tensor, np.asarray(alone[name]), one_by_one(parameters)[name])

        assert error <= tolerance("float32", "stack_of_tensors"), name


# bitsandbytes' CPU code misses the nearest code at times (see the tests of the op), and its decay
# comes first. A sign of Lion's turns where the moment's code is another one.
@each
def test_stays_beside_bitsandbytes_on_the_cpu(kind, inputs):
    parameters, gradients = inputs
    made = IN_8_BITS[kind](RATE, **BETAS, weight_decay=DECAY, mask=None)
    found, _ = run(made, parameters, gradients)
    start = one_by_one(parameters)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    betas = (BETAS["b1"], BETAS["b2"])
    optimizer = THEIRS[kind](list(tensors.values()), RATE, betas, weight_decay=DECAY)
    for gradient in gradients:
        for name, g in one_by_one(gradient).items():
            tensors[name].grad = torch.tensor(g)
        optimizer.step()
    for name, tensor in one_by_one(found).items():
        wanted = tensors[name].detach().numpy()
        assert drift(tensor, wanted, start[name]) <= tolerance("float32", f"{kind}_8bit"), name
        in_8_bits = optimizer.state[tensors[name]]["state1"].dtype == torch.uint8
        assert in_8_bits == (tensor.size >= 4096), name


def test_states_are_blocks_of_each_layer_or_32_bits(inputs):
    state = adamw_8bit(RATE).init(inputs[0])
    shapes = {
        name: [leaf.shape for leaf in jax.tree.leaves(held)] for name, held in state.held.items()
    }
    assert shapes == {
        "head": [(1, 2100), (1, 2100)],
        "model.layers.norm.weight": [(4, 20, 256), (4, 20)] * 2,
        # 10,240, none, 5,120 and 10,240 elements.
        "model.layers.proj.lora_A": [(3, 40, 256), (3, 40)] * 2,
        # 6,144, none, 3,072 and 6,144.
        "model.layers.proj.lora_B": [(2, 24, 256), (2, 24)] * 2 + [(1, 3072)] * 2,
    }


@each
def test_states_take_little_memory(kind):
    parameters = {"embedding": jnp.zeros((512, 256))}
    state = IN_8_BITS[kind](RATE).init(parameters)
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(state.held))
    moments = {"adamw": 2, "lion": 1}[kind]
    assert taken / (512 * 256) == moments * (1 + 4 / 256)  # 2.031 and 1.016


@each
@pytest.mark.slow  # the import of Orbax
def test_orbax_keeps_a_state_bit_for_bit(kind, inputs, tmp_path):
    parameters, gradients = inputs
    made = IN_8_BITS[kind](RATE, **BETAS)
    halfway, state = run(made, parameters, gradients[:3])
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        back = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(back)} == {"uint8", "float32", "int32"}
    jax.tree.map(np.testing.assert_array_equal, back, state)
    one, _ = made.update(gradients[3], state, halfway)
    other, _ = made.update(gradients[3], back, halfway)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@each
def test_a_state_of_other_parameters_is_refused(kind, inputs):
    parameters, gradients = inputs
    made = IN_8_BITS[kind](RATE)
    other = made.init(tree(lambda shape: np.zeros(shape), norm=4000))
    message = (
        r"must be that of the parameters; `model\.layers\.norm\.weight` needs blocks.*uint8"
        r"\[4, 20, 256\].* and has plain.*float32\[4, 4000\].*\. Resume with the adapter"
    )
    with pytest.raises(ValueError, match=message):
        made.update(gradients[0], other, parameters)
    with pytest.raises(ValueError, match="only one of the two has"):
        made.update(gradients[0], made.init({"head": jnp.zeros(3)}), parameters)
    with pytest.raises(ValueError, match="need the parameters; got None"):
        made.update(gradients[0], made.init(parameters))


@each
def test_narrow_parameters_take_float32_updates(kind):
    rng = np.random.default_rng(0)
    p, g = (jnp.asarray(rng.normal(size=(2, 64, 64)), "bfloat16") for _ in range(2))
    made = IN_8_BITS[kind](RATE, weight_decay=DECAY)
    updates, _ = made.update({"p": g}, made.init({"p": p}), {"p": p})
    assert updates["p"].dtype == jnp.float32
    after = optax.apply_updates({"p": p}, updates)["p"]
    assert after.dtype == jnp.bfloat16
    # The very numbers that the rule gave, which were rounded to bfloat16.
    wanted = p.astype(jnp.float32) + updates["p"]
    np.testing.assert_array_equal(wanted, after.astype(jnp.float32))


@each
def test_rate_may_be_a_schedule_of_the_updates_made(kind, inputs):
    parameters, gradients = inputs
    rates = jnp.asarray([0.0, RATE, 0.0])
    made = IN_8_BITS[kind](lambda count: rates[count], weight_decay=DECAY)
    states = [run(made, parameters, gradients[:steps])[0] for steps in (1, 2, 3)]
    start, *moved = (one_by_one(state)["base_model.model.head"] for state in (parameters, *states))
    np.testing.assert_array_equal(moved[0], start)
    assert (moved[1] != start).all()
    np.testing.assert_array_equal(moved[2], moved[1])


def test_paged_states_stay_in_host_memory_and_change_nothing(inputs):
    plain, _ = run(adamw_8bit(RATE), inputs[0], inputs[1][:3])
    # Bound to the device, as all that comes of states in host memory is.
    parameters, *gradients = jax.device_put([inputs[0], *inputs[1][:3]], jax.devices()[0])
    moved, state = run(paged(adamw_8bit(RATE), moves=True), parameters, gradients[:3])
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.held)}
    assert kinds == {"pinned_host"}
    jax.tree.map(np.testing.assert_array_equal, moved, plain)


def test_paged_moves_nothing_on_a_cpu(inputs):
    if jax.default_backend() != "cpu":
        pytest.skip("a device with memory of its own")
    state = paged(adamw_8bit(RATE)).init(inputs[0])
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.held)}
    assert "pinned_host" not in kinds


@pytest.mark.parametrize("name", ["adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_names_of_the_arguments_stand_for_these(name, inputs):
    parameters, gradients = inputs
    hyper = {**BETAS, "weight_decay": DECAY}
    by_name = create_optimizer(name, optax.constant_schedule(RATE), **hyper, eps=1e-6)
    more = {} if "lion" in name else {"eps": 1e-6}
    direct = (lion_8bit if "lion" in name else adamw_8bit)(RATE, **hyper, **more)
    found, wanted = (run(tx, parameters, gradients[:2])[0] for tx in (by_name, direct))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
