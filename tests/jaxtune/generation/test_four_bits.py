"""Answers from 4-bit weights, whose scales are decoded once and not at every token."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxtune.bench.options import Bench
from jaxtune.bench.setup import make_model
from jaxtune.bench.subject import Subject
from jaxtune.generation import decode as decoding
from jaxtune.models.registry import find_family
from tests.jaxtune.generation.tiny import CONFIG


@pytest.fixture(scope="module")
def model():
    family = find_family("llama")
    sizes = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}
    subject = Subject(name="tiny", family=family, config=family.config_from_hf(sizes))
    return make_model(Bench(rank=2), subject)


def program(model, rows, monkeypatch):
    """The jaxpr of the program that makes tokens, as `generate` calls it."""
    found = []
    right = decoding.decode

    def traced(graphdef, *rest):
        found.append(right.trace(graphdef, *rest).jaxpr)
        return right(graphdef, *rest)

    monkeypatch.setattr("jaxtune.generation.generate.decode", traced)
    model.generate([[3, 5, 7]] * rows, max_new_tokens=2, eos_token_id=-1)
    (loop,) = (e for e in found[0].jaxpr.eqns if e.primitive.name == "while")
    return loop


@pytest.mark.parametrize(("rows", "nested"), [(1, False), (33, True)])
def test_the_loop_reads_nested_scales_only_where_weights_are_made_dense(
    model, monkeypatch, rows, nested
):
    loop = program(model, rows, monkeypatch)
    tables = [v.aval for v in loop.invars if getattr(v.aval, "shape", None) == (256,)]
    assert bool(tables) == nested


def test_answers_are_those_with_nested_scales(model, monkeypatch):
    ids = [[3, 5, 7], [2, 4, 6]]
    found = model.generate(ids, max_new_tokens=6, eos_token_id=-1)
    monkeypatch.setattr(decoding, "_read_often", lambda state: state)
    decoding.decode.clear_cache()
    np.testing.assert_array_equal(model.generate(ids, max_new_tokens=6, eos_token_id=-1), found)


def test_the_model_keeps_its_own(model):
    before = jax.tree.structure(nnx.state(model))
    model.generate([[3, 5]], max_new_tokens=2)
    assert jax.tree.structure(nnx.state(model)) == before
