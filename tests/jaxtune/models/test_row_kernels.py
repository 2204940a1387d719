"""The norms and the gated activation inside the model: which backend, and the same gradients."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from jaxtune.config import Remat
from jaxtune.models.build import build
from jaxtune.models.decoder import CausalLM, Decoder
from jaxtune.models.gemma3 import Gemma3ForCausalLM
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.models.placement import AXES
from jaxtune.training.step import loss, split
from tests.jaxtune.models.test_quantized_residuals import BATCH, CONFIG, SANDWICH, equations
from tests.tolerances import relative_error, tolerance

HEADS = dataclasses.replace(
    SANDWICH,
    norm=dataclasses.replace(SANDWICH.norm, qk_norm=True),
    hidden_activation="gelu_pytorch_tanh",
)
FAMILIES = {"llama": (LlamaForCausalLM, CONFIG), "gemma3": (Gemma3ForCausalLM, HEADS)}


def model_of(family: str, remat: Remat) -> CausalLM:
    """A model whose every weight is trained."""
    model = build(*FAMILIES[family], "random", dtype=jnp.float32)
    model.model.remat = remat
    return model


def program_of(model: CausalLM) -> tuple[Any, Any]:
    """The loss and its gradient as a function of the trained leaves, and those."""
    graphdef, trainable, frozen = split(model)
    return jax.value_and_grad(lambda leaves: loss(graphdef, leaves, frozen, BATCH)[0]), trainable


@pytest.mark.parametrize("remat", ["full", "none"])
@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_kernels_give_the_loss_and_gradients_of_plain_jax(
    family: str, remat: Remat, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, trainable = program_of(model_of(family, remat))
    value, gradients = jax.jit(function)(trainable)
    monkeypatch.setattr(Decoder, "row_kernels", "interpret")
    interpreted, others = jax.jit(lambda leaves: function(leaves))(trainable)
    assert relative_error(interpreted, value) <= tolerance("float32", "loss")
    for one, other in zip(jax.tree.leaves(others), jax.tree.leaves(gradients), strict=True):
        assert relative_error(one, other) <= tolerance("float32", "lora_gradient")


def kernels_of(function: Any, *arguments: Any) -> collections.Counter[tuple[int, int]]:
    """Numbers of operands and results of each Pallas kernel in a program."""
    found = equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    return collections.Counter(
        (len(equation.invars), len(equation.outvars))
        for equation in found
        if equation.primitive.name == "pallas_call"
    )


@pytest.mark.parametrize(("remat", "adding"), [("full", 2), ("none", 0)])
def test_stream_is_added_inside_the_norm_unless_the_sum_is_kept(
    remat: Remat, adding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "row_kernels", "interpret")
    found = kernels_of(*program_of(model_of("llama", remat)))
    expected = {
        (3, 3): adding,  # weight, stream and what joins it -> rstd, norm and sum
        (2, 2): 5 - adding,  # weight and rows -> rstd and norm; the last one is not redone
        (5, 1): 2,  # weight, rstd, rows and the cotangents of the norm and the stream
        (4, 1): 1,  # the last norm's
        (2, 1): 2,  # glu, made and redone
        (3, 2): 1,
    }
    assert found == {shape: count for shape, count in expected.items() if count}


@pytest.mark.parametrize(
    ("kernels", "sizes", "rows", "split", "weight"),
    [
        ("auto", None, "xla", "auto", "auto"),
        ("auto", (2, 1, 1), "xla", "xla", "auto"),
        ("auto", (1, 2, 1), "xla", "xla", "xla"),
        ("interpret", None, "interpret", "interpret", "interpret"),
        ("interpret", (1, 2, 1), "interpret", "interpret", "interpret"),
        ("xla", (2, 1, 1), "xla", "xla", "xla"),
    ],
)
def test_what_the_compiler_fuses_or_splits_is_plain_jax(
    kernels: str, sizes: tuple[int, ...] | None, rows: str, split: str, weight: str
) -> None:
    decoder = model_of("llama", "full").model
    decoder.kernels, decoder.mesh = kernels, sizes and AbstractMesh(sizes, AXES)
    assert (decoder.row_kernels, decoder.split_kernels) == (rows, split)
    assert decoder.weight_kernels == weight
