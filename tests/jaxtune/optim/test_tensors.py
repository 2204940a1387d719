"""How a leaf is cut into the tensors that PEFT holds."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.optim.tensors import Tensors, tensors_of
from tests.jaxtune.optim.adapter import INNER, OUTER, RANKS, one_by_one, tree


def draw(shape):
    return np.random.default_rng(0).normal(size=shape)


def test_rows_are_the_elements_of_pefts_tensors():
    trainable = tree(draw)
    tensors = one_by_one(trainable)
    cuts = tensors_of(trainable)
    leaves = dict(zip(cuts, jax.tree.leaves(trainable), strict=True))
    for side in "AB":
        cut = cuts[f"model.layers.proj.lora_{side}"]
        rows = np.asarray(cut.rows(leaves[f"model.layers.proj.lora_{side}"]))
        for layer, (row, size) in enumerate(zip(rows, cut.sizes, strict=True)):
            tensor = tensors.get(f"layers.{layer}.proj.lora_{side}", np.zeros(0))
            assert size == tensor.size
            np.testing.assert_array_equal(row[:size], tensor.reshape(-1))
            assert not row[size:].any()


def test_every_leaf_has_its_layers_and_sizes():
    cuts = tensors_of(tree(draw))
    assert {name: (cut.layers, cut.sizes) for name, cut in cuts.items()} == {
        "head": (None, (2100,)),
        "model.layers.norm.weight": (4, (5000,) * 4),
        "model.layers.proj.lora_A": (4, tuple(INNER * rank for rank in RANKS)),
        "model.layers.proj.lora_B": (4, tuple(OUTER * rank for rank in RANKS)),
    }


def test_a_tree_of_ones_own_is_a_tensor_a_leaf():
    cuts = tensors_of({"a": jnp.zeros((2, 3)), "b": [jnp.zeros(())]})
    assert {name: (cut.layers, cut.sizes) for name, cut in cuts.items()} == {
        "a": (None, (6,)),
        "b.0": (None, (1,)),
    }


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 1))
def test_a_leaf_is_put_together_again(ranks, other, axis):
    width = max(*ranks, 1)
    shape = (width, other) if axis == 0 else (other, width)
    cut = Tensors(layers=len(ranks), shape=shape, ranks=tuple(ranks), rank_axis=axis)
    below = np.arange(width) < np.asarray(ranks)[:, None]
    held = below[:, :, None] if axis == 0 else below[:, None, :]
    leaf = np.arange(1, 1 + len(ranks) * width * other).reshape(len(ranks), *shape) * held
    leaf = jnp.asarray(leaf, jnp.float32)
    rows = cut.rows(leaf)
    np.testing.assert_array_equal(cut.leaf(rows), leaf)
    for row, size in zip(np.asarray(rows), cut.sizes, strict=True):
        assert row[:size].all()
        assert not row[size:].any()
