"""Projections of one input, dense or of 4 bits, together or alone: values and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtune.config import LayerSpec, RopeSpec
from jaxtune.layers.context import LayerContext
from jaxtune.layers.linear import Linear, LoraSpec, _kept, project
from jaxtune.layers.variables import Frozen
from jaxtune.models.quantized import random_stack
from pallas_kernels import dequantize_nf4
from tests.tolerances import relative_error, tolerance

WIDTH, OUT, LAYERS, LAYER = 64, (96, 128), 3, 1


def linear(out: int, rank: int, *, bias: bool, dropout: float, seed: int) -> Linear:
    made = Linear(
        WIDTH, out, layers=None, bias=bias, std=0.1, dtype=jnp.float32, rngs=nnx.Rngs(seed)
    )
    key = jax.random.key(seed)
    made.weight = Frozen(random_stack(key, LAYERS, (out, WIDTH), "float32", 0.1))
    if bias:
        made.bias = nnx.Param(jax.random.normal(key, (out,)))
    made.lora = LoraSpec(ranks=(rank,) * LAYERS, scales=(0.5, 2.0, 1.0), dropout=dropout)
    made.lora_A = nnx.LoRAParam(jax.random.normal(key, (rank, WIDTH)) * 0.2)
    made.lora_B = nnx.LoRAParam(jax.random.normal(key, (out, rank)) * 0.2)
    return made


def context(*, adapters: bool = True, key: jax.Array | None = None) -> LayerContext:
    rope = RopeSpec(rope_type="default", rope_theta=100.0)
    empty = jnp.zeros((1, 1, 1))
    return LayerContext(
        layer=LAYER,
        spec=LayerSpec(window=None, rope=rope),
        cos=empty,
        sin=empty,
        segment_ids=None,
        cache=None,
        adapters=adapters,
        dropout_key=key,
        kernels="auto",
        row_kernels="auto",
        split_kernels="auto",
        prepared={},
        middle_kept=False,
        mlp_pieces=1,
    )


def pair(**options: Any) -> list[Linear]:
    return [linear(out, rank, seed=rank, **options) for out, rank in zip(OUT, (3, 5), strict=True)]


def dense(linears: list[Linear]) -> list[Linear]:
    """The same projections with the weights that the 4-bit ones stand for."""
    for module in linears:
        weight = dequantize_nf4(module.weight.get_value(), LAYER, jnp.float32)
        module.weight = Frozen(weight)
    return linears


def gradients(linears: list[Linear], x: jax.Array, where: LayerContext) -> tuple[Any, Any]:
    graphdef, trained, rest = nnx.split(linears, nnx.Param, ...)

    def total(trained: nnx.State, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        outputs = project(nnx.merge(graphdef, trained, rest), x, where, 4)
        return sum(jnp.sum(y * jnp.cos(y + i)) for i, y in enumerate(outputs)), outputs

    found, outputs = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(trained, x)
    return outputs, jax.tree.leaves(found)


@pytest.mark.parametrize(("bias", "dropout"), [(False, 0.0), (True, 0.5)])
def test_values_and_gradients_are_those_of_dense_weights(bias: bool, dropout: float) -> None:
    x = jax.random.normal(jax.random.key(7), (2, 9, WIDTH))
    where = context(key=jax.random.key(3) if dropout else None)
    ours = gradients(pair(bias=bias, dropout=dropout), x, where)
    theirs = gradients(dense(pair(bias=bias, dropout=dropout)), x, where)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert relative_error(actual, expected) <= tolerance("float32", "window_gradient")


def test_without_adapters_it_is_the_base() -> None:
    x = jax.random.normal(jax.random.key(7), (1, 4, WIDTH))
    outputs = project(pair(bias=True, dropout=0.0), x, context(adapters=False), 4)
    for y, module in zip(outputs, dense(pair(bias=True, dropout=0.0)), strict=True):
        expected = x @ module.weight.get_value().T + module.bias[...]
        assert relative_error(y, expected) <= tolerance("float32", "window_gradient")


def test_one_that_has_no_adapter_is_computed_apart() -> None:
    linears = pair(bias=False, dropout=0.0)
    linears[1].lora = None
    x = jax.random.normal(jax.random.key(7), (1, 4, WIDTH))
    outputs = project(linears, x, context(), 4)
    for y, module in zip(outputs, linears, strict=True):
        np.testing.assert_array_equal(y, module(x, context(), 4 + linears.index(module)))


@pytest.mark.parametrize("width", [64, 63])
@pytest.mark.parametrize("share", [0.9, 0.25])
def test_masks_keep_their_share_everywhere_and_differ(width: int, share: float) -> None:
    masks = []
    for seed in range(2):
        mask, kept = _kept(jax.random.key(seed), share, (40, 50, width))
        assert abs(kept - share) <= 2**-17
        masks.append(np.asarray(mask, np.float64))
        # Five standard deviations of a mean of 2,000 and of 128,000 draws.
        spread = (share * (1 - share)) ** 0.5
        assert np.abs(masks[-1].mean(axis=(0, 1)) - share).max() <= 5 * spread / 2000**0.5
        assert abs(masks[-1].mean() - share) <= 5 * spread / (2000 * width) ** 0.5
    # Neither the seeds nor the two halves of a number go together.
    half = width // 2
    pairs = [(masks[0], masks[1]), (masks[0][..., :half], masks[0][..., -half:])]
    for one, two in pairs:
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) <= 5 / one.size**0.5
