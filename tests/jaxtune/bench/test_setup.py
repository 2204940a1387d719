"""What the measured step is given, and what is counted while it runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune.bench import memory, setup
from jaxtune.bench.age import process_age
from jaxtune.bench.measure import COMPILED, heard
from jaxtune.bench.options import Bench
from jaxtune.bench.setup import draw_documents, make_batch, make_optimizer, make_setup
from jaxtune.bench.subject import find_subject
from tests.jaxtune.bench.tiny import TINY


def test_unpacked_rows_are_one_document_each():
    assert draw_documents(3, 40, packing=False) == [[40]] * 3
    batch = make_batch([[40]] * 3, 97, packing=False)
    assert (batch.layout, batch.segment_ids) == ("causal", None)
    assert batch.input_ids.shape == (3, 40)
    batch.check()


@pytest.mark.parametrize("length", [2, 3, 32, 2048])
def test_packed_rows_are_full_of_several_documents(length):
    documents = draw_documents(4, length, packing=True)
    assert all(sum(row) == length and len(row) >= 2 for row in documents)
    if length == 2048:
        assert all(100 <= n <= 500 for row in documents for n in row[:-1])
        assert documents[0] != documents[1]


def test_segments_follow_the_documents():
    batch = make_batch([[2, 3], [4, 1]], 97, packing=True)
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 2, 2, 2], [1, 1, 1, 1, 2]])
    batch.check()


def test_tokens_are_random_and_every_one_is_a_label():
    batch = make_batch([[500]] * 2, 97, packing=False)
    ids = np.asarray(batch.input_ids)
    assert (ids.min(), ids.max()) == (0, 96)
    np.testing.assert_array_equal(batch.labels, ids)


def test_both_sides_of_the_adapter_are_drawn_and_plan_and_kernels_arrive(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    models = []
    real = setup.split
    monkeypatch.setattr(setup, "split", lambda model: real(models.append(model) or model))
    options = Bench(model=str(tmp_path), bits=16, rank=3, length=8, plan="none", kernels="xla")
    made = make_setup(options, find_subject(options.model), make_optimizer("sgd"), [[8]] * 2)
    leaves = jax.tree.leaves(made.trainable)
    assert len(leaves) == 14
    assert all(3 in leaf.shape and float(jnp.abs(leaf).max()) > 0 for leaf in leaves)
    assert (models[0].model.remat, models[0].model.kernels) == ("none", "xla")


def test_four_bits_make_stacks_that_never_were_dense(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    options = Bench(model=str(tmp_path), bits=4, rank=2, length=8)
    made = make_setup(options, find_subject(options.model), make_optimizer("sgd"), [[8]] * 2)
    codes = [leaf for leaf in jax.tree.leaves(made.frozen) if leaf.dtype == jnp.uint8]
    projections = 7
    assert len(codes) == 2 * projections  # and absmax
    assert len({bytes(np.asarray(leaf)) for leaf in codes}) == len(codes)
    assert float(made.step(*made_arguments(made))[2]["loss"]) > 0


def made_arguments(made):
    return made.trainable, made.opt_state, made.frozen, made.batch


def test_compilations_are_heard_and_only_inside():
    x = jnp.arange(7.0)
    with heard() as events:
        function = jax.jit(lambda x: jnp.sin(x) * 1.2345)
        function(x)
        assert events.count(COMPILED) == 1
        function(x)
        assert events.count(COMPILED) == 1
    jax.jit(lambda x: jnp.cos(x) * 1.2345)(x)
    assert events.count(COMPILED) == 1


def test_rows_of_nvidia_smi():
    rows = "123, 1000\n4, 7\n123, 24\nno devices were found\n5, [N/A]\n"
    assert memory.used_by(rows, 123) == 1024 * 2**20
    assert memory.used_by(rows, 5) is None
    assert memory.used_by(rows, 12) is None
    assert memory.used_by("", 0) is None


def test_a_process_without_psutil_knows_its_age(monkeypatch):
    exact = process_age()
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    assert process_age() == pytest.approx(exact, abs=1.0)


def test_an_age_that_nothing_tells(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    assert process_age(tmp_path) is None
