"""What the backward pass of a 4-bit model keeps: small arrays with names, and no dense weight."""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, get_args

import jax
import numpy as np
import pytest

from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import projections
from jaxtune.config import DecoderConfig, LayerSpec, NormSpec, Remat, RopeSpec
from jaxtune.data.batch import Batch
from jaxtune.layers.linear import LoraSpec
from jaxtune.layers.residuals import (
    GATE,
    INNER_NAME,
    KEPT,
    MLP_PROJECTION,
    OUTPUT_NAME,
    STATISTICS_NAME,
    UP,
)
from jaxtune.models.build import build, freeze
from jaxtune.models.decoder import CausalLM
from jaxtune.models.gemma2 import Gemma2ForCausalLM
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.models.run import LAYER_INPUT
from jaxtune.training.step import loss, split

LAYERS, RANK = 3, 2
ROPE = RopeSpec(rope_type="default", rope_theta=100.0)
# No two sizes are equal, nor equal to those of the batch.
CONFIG = DecoderConfig(
    vocab_size=50,
    hidden_size=26,
    intermediate_size=52,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    hidden_activation="silu",
    max_position_embeddings=32,
    tie_word_embeddings=False,
    norm=NormSpec(rms_norm_eps=1e-5, unit_offset=False, sandwich=False, qk_norm=False),
    period=(LayerSpec(window=None, rope=ROPE),),
    query_scale=0.5,
    embedding_scale=1.0,
    attention_bias=False,
    mlp_bias=False,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
)
SANDWICH = dataclasses.replace(
    CONFIG, norm=NormSpec(rms_norm_eps=1e-5, unit_offset=True, sandwich=True, qk_norm=False)
)
BATCH = Batch(
    input_ids=np.ones((7, 13), np.int32), labels=np.ones((7, 13), np.int32), layout="causal"
)


@functools.cache
def model_of(*, sandwich: bool) -> CausalLM:
    family = Gemma2ForCausalLM if sandwich else LlamaForCausalLM
    model = build(family, SANDWICH if sandwich else CONFIG, "random", bits=4)
    freeze(model)
    spec = LoraSpec(ranks=(RANK,) * LAYERS, scales=(1.0,) * LAYERS, dropout=0.0)
    inject_lora(model, dict.fromkeys(projections(model), spec), seed=0)
    return model


def matrices(model: CausalLM) -> set[tuple[int, ...]]:
    """Shapes that a dense weight of a projection could have, either way round."""
    shapes = {linear.weight.get_value().shape[1:] for linear in projections(model).values()}
    return shapes | {shape[::-1] for shape in shapes}


def traced(function: Any, remat: Remat, *, sandwich: bool = False) -> Any:
    """The program of `function(loss of the trained leaves, trained leaves)`."""
    model = model_of(sandwich=sandwich)
    model.model.remat = remat
    graphdef, trainable, frozen = split(model)

    def program(trainable: Any, frozen: Any) -> Any:
        return function(lambda leaves: loss(graphdef, leaves, frozen, BATCH)[0], trainable)

    return jax.make_jaxpr(program)(trainable, frozen).jaxpr


def kept(remat: Remat, *, sandwich: bool = False) -> Any:
    """The program that gives what the backward pass reads."""
    return traced(lambda f, x: jax.tree.leaves(jax.vjp(f, x)[1]), remat, sandwich=sandwich)


def equations(program: Any) -> Iterator[Any]:
    """Every equation, those of inner programs too."""
    for equation in program.eqns:
        yield equation
        for inner in inner_programs(tuple(equation.params.values())):
            yield from equations(inner)


def inner_programs(value: Any) -> Iterator[Any]:
    """Programs among an equation's parameters."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from inner_programs(item)
    elif hasattr(getattr(value, "jaxpr", value), "eqns"):
        yield getattr(value, "jaxpr", value)


def gradient_equations(remat: Remat) -> list[Any]:
    """Of one layer's programs, forward and backward; what nothing reads is left out."""
    program = traced(lambda f, x: jax.grad(f)(x), remat)
    return list(equations(program))


def dequantizations(remat: Remat) -> int:
    """Look-ups in a table of 16 codes."""
    return sum(
        equation.primitive.name == "gather" and equation.invars[0].aval.shape == (16,)
        for equation in gradient_equations(remat)
    )


def attention_forwards(remat: Remat) -> int:
    """Maxima of a softmax's rows, of which the backward pass has none."""
    heads = CONFIG.num_key_value_heads
    return sum(
        equation.primitive.name == "reduce_max" and heads in equation.invars[0].aval.shape
        for equation in gradient_equations(remat)
    )


def name_of(variable: Any, program: Any) -> str:
    """The name of a value, or what it is."""
    if variable in program.invars:
        return LAYER_INPUT
    made = next(equation for equation in program.eqns if variable in equation.outvars)
    if made.primitive.name == "name":
        return made.params["name"]
    if made.primitive.name == "reduce_precision":
        return name_of(made.invars[0], program)
    return f"{made.primitive.name} of {variable.aval}"


def kept_a_layer(remat: Remat, *, sandwich: bool = False) -> collections.Counter[str]:
    """Names of the arrays that each layer leaves behind and the backward pass reads."""
    program = kept(remat, sandwich=sandwich)
    scans = (equation for equation in program.eqns if equation.primitive.name == "scan")
    (scan,) = (equation for equation in scans if equation.params["length"] == LAYERS)
    body = scan.params["jaxpr"].jaxpr
    pairs = zip(scan.outvars, body.outvars, strict=True)
    stacked = [pair for pair in pairs if pair[0].aval.shape == (LAYERS, *pair[1].aval.shape)]
    floats = [inner for outer, inner in stacked if outer in program.outvars and is_batch(inner)]
    return collections.Counter(name_of(inner, body) for inner in floats)


def is_batch(variable: Any) -> bool:
    """Whether an array belongs to the batch, and is no layer's own leaf or index."""
    return variable.aval.shape[:1] == BATCH.input_ids.shape[:1]


@pytest.mark.parametrize("remat", get_args(Remat))
def test_no_dense_weight_is_kept(remat: Remat) -> None:
    shapes = matrices(model_of(sandwich=False))
    held = [variable.aval for variable in kept(remat).outvars]
    assert {value.dtype.name for value in held} >= {"float32", "uint8"}
    floats = [value for value in held if value.dtype.kind == "f"]
    assert [value for value in floats if value.shape[-2:] in shapes] == []
    sizes = {math.prod(shape) for shape in shapes}
    sizes |= {LAYERS * size for size in sizes}
    assert [value for value in floats if value.size in sizes] == []


@pytest.mark.parametrize(
    ("remat", "again", "forwards"),
    [
        ("none", 0, 1),
        ("gate_up", 4, 1),  # q, k, v and o
        ("attention", 6, 1),
        ("full", 6, 2),  # the last product's result is read by nothing in the backward pass
        ("offload", 6, 2),
        ("least", 6, 2),  # rows of 13 tokens do not divide into pieces
    ],
)
def test_what_a_plan_does_again(remat: Remat, again: int, forwards: int) -> None:
    assert dequantizations(remat) == 2 * 7 + again
    assert attention_forwards(remat) == forwards


def test_none_keeps_each_name_and_nothing_else() -> None:
    expected = collections.Counter(KEPT) + collections.Counter([LAYER_INPUT])
    expected[INNER_NAME] = 4  # one for each distinct input
    assert kept_a_layer("none", sandwich=True) == expected
    for name in ("attention_projection", "mlp_projection"):  # no norm follows them
        del expected[name]
    assert kept_a_layer("none") == expected


def test_gate_up_keeps_what_attention_and_the_wide_products_give() -> None:
    expected = {LAYER_INPUT: 1, OUTPUT_NAME: 1, STATISTICS_NAME: 1, GATE: 1, UP: 1, INNER_NAME: 4}
    assert kept_a_layer("gate_up") == expected
    assert kept_a_layer("gate_up", sandwich=True) == expected | {MLP_PROJECTION: 1}


def test_attention_keeps_what_attention_gives() -> None:
    expected = {LAYER_INPUT: 1, OUTPUT_NAME: 1, STATISTICS_NAME: 1, INNER_NAME: 4}
    assert kept_a_layer("attention") == expected


def test_full_keeps_the_layers_input() -> None:
    assert kept_a_layer("full") == {LAYER_INPUT: 1}
