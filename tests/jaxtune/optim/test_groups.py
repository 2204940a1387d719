"""Leaves at rates of their own, under every optimizer and under optax's combinators."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxtune.optim import adamw_8bit
from jaxtune.optim.groups import embedding_labels, embedding_modules
from jaxtune.optim.registry import OPTIMIZERS, create_optimizer

RATE = optax.linear_schedule(1e-2, 0.0, 4)
OWN = optax.linear_schedule(3e-3, 0.0, 4)


def whole_tree(seed):
    """Stacks, an embedding's copy and a head; of both groups some are large enough for 8 bits."""
    draw = np.random.default_rng(seed)

    def leaf(*shape):
        return nnx.Param(jnp.asarray(draw.normal(size=shape), jnp.float32))

    layers = {"up_proj": {"weight": leaf(2, 70, 64)}, "norm": {"weight": leaf(2, 64)}}
    copy = {"trained_weight": leaf(70, 64)}
    return nnx.State(
        {
            "lm_head": {"weight": leaf(7, 64)},
            "model": {"layers": layers, "embed_tokens": copy},
        }
    )


def part_of(state, *, embedding):
    """Only the embedding and head, or only the rest."""
    model = dict(state["model"])
    copy = model.pop("embed_tokens")
    if embedding:
        return nnx.State({"lm_head": state["lm_head"], "model": {"embed_tokens": copy}})
    return nnx.State({"model": model})


def named(state):
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def after_steps(tx, part):
    """Parameters after two steps, by name."""
    parameters = part(whole_tree(0))
    state = tx.init(parameters)
    for seed in (1, 2):
        updates, state = jax.jit(tx.update)(part(whole_tree(seed)), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return named(parameters)


# One name for each optimizer: some have two.
NAMES = sorted({make: name for name, make in sorted(OPTIMIZERS.items(), reverse=True)}.values())


@pytest.mark.parametrize("name", NAMES)
def test_each_group_steps_as_it_does_by_itself(name):
    def made(rate, own=None):
        return create_optimizer(name, rate, weight_decay=0.1, embedding_learning_rate=own)

    found = after_steps(made(RATE, OWN), lambda state: state)
    expected = after_steps(made(RATE), lambda state: part_of(state, embedding=False))
    expected |= after_steps(made(OWN), lambda state: part_of(state, embedding=True))
    assert found.keys() == expected.keys()
    for leaf, tensor in expected.items():
        np.testing.assert_array_equal(found[leaf], tensor, err_msg=leaf)


def test_a_masked_optimizer_holds_no_state_of_what_it_leaves_out():
    """`optax.masked` around 8-bit states, as `optax.partition` does for each of its groups."""
    parameters = whole_tree(0)
    mask = jax.tree.map(lambda label: label == "embedding", embedding_labels(parameters))
    tx = optax.masked(adamw_8bit(RATE), mask)
    state = tx.init(parameters)
    assert set(state.inner_state.held) == {
        "lm_head.weight",
        "model.embed_tokens.trained_weight",
    }
    updates, _ = jax.jit(tx.update)(whole_tree(1), state, parameters)
    unchanged = named(whole_tree(1))
    for leaf, update in named(updates).items():
        left_out = "embed_tokens" not in leaf and "lm_head" not in leaf
        assert np.array_equal(update, unchanged[leaf]) == left_out, leaf


def test_the_matrices_are_found_by_their_modules():
    assert embedding_modules(whole_tree(0)) == ["embed_tokens", "lm_head"]
    assert embedding_modules(part_of(whole_tree(0), embedding=False)) == []
    near = {"model": {"embed_tokens_norm": {"weight": 1.0}, "layers": {"lm_head_proj": 1.0}}}
    assert embedding_modules(near) == []
    assert set(jax.tree.leaves(embedding_labels(near))) == {"other"}
