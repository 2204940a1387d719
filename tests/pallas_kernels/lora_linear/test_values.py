"""Values and every gradient of the LoRA products against the definition in float64."""

import functools
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import Unsupported, lora_linear
from pallas_kernels.lora_linear import group, prepare_adapters, triton
from pallas_kernels.lora_linear.cases import ODD_CASES, Case, Drawn, make_inputs
from pallas_kernels.lora_linear.contract import Adapter
from pallas_kernels.lora_linear.group import Part
from pallas_kernels.lora_linear.reference import lora_linear_ref
from pallas_kernels.nf4 import NF4
from pallas_kernels.nf4.reference import dequantize_nf4_ref
from tests.pallas_kernels.drawing import normal
from tests.tolerances import relative_error, tolerance

BACKENDS = ("xla", "interpret", pytest.param("triton", marks=pytest.mark.gpu))


@pytest.fixture(autouse=True)
def several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips and blocks so small that odd cases have several; no dy is too small."""
    for name, value in {
        "COLUMNS": 64,
        "ROWS": 32,
        "TILE": 16,
        "PROGRAMS": 0,
        "WORTH_BYTES": 0,
    }.items():
        monkeypatch.setattr(triton, name, value)


def run(backend: str, inputs: Drawn, dys: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    """Outputs, and gradients of x, A's input where it is another, and the adapters."""

    def call(x: jax.Array, dropped: jax.Array | None, adapters: tuple[Adapter, ...]) -> Any:
        return lora_linear(x, inputs.weights, adapters, dropped=dropped, backend=backend)

    @jax.jit
    def both(x: jax.Array, dropped: jax.Array | None, adapters: tuple[Adapter, ...]) -> Any:
        y, pull = jax.vjp(call, x, dropped, adapters)
        return y, pull(dys)

    return both(inputs.x, inputs.dropped, inputs.adapters)


def expected(inputs: Drawn, dys: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    """The same by the definition in float64."""
    with jax.enable_x64(True):
        wide = partial(jax.tree.map, lambda a: jnp.asarray(np.asarray(a, np.float64)))
        weights = [
            wide(dequantize_nf4_ref(w, 0, w.dtype) if isinstance(w, NF4) else w)
            for w in inputs.weights
        ]

        def call(x: jax.Array, dropped: jax.Array | None, adapters: tuple[Adapter, ...]) -> Any:
            z = x if dropped is None else dropped
            pairs = zip(weights, adapters, strict=True)
            return tuple(lora_linear_ref(x, z, w, adapter) for w, adapter in pairs)

        y, pull = jax.vjp(call, *wide((inputs.x, inputs.dropped, inputs.adapters)))
        return jax.tree.map(np.asarray, (y, pull(wide(dys))))


def cotangents(case: Case, dtype: str) -> tuple[jax.Array, ...]:
    draw = normal(9)
    return tuple(jnp.asarray(draw((case.M, out)), dtype) for out in case.O)


@functools.cache
def made(case: Case, dtype: str) -> tuple[Drawn, tuple[jax.Array, ...], tuple[Any, Any]]:
    """Inputs and cotangents of a case, and what is right."""
    inputs, dys = make_inputs(case, dtype, normal(0)), cotangents(case, dtype)
    return inputs, dys, expected(inputs, dys)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ODD_CASES, ids=lambda case: case.name)
def test_equals_the_definition(case: Case, dtype: str, backend: str) -> None:
    inputs, dys, (true_y, true_gradients) = made(case, dtype)
    y, gradients = run(backend, inputs, dys)
    for actual, wanted in zip(y, true_y, strict=True):
        assert actual.dtype == dtype
        assert relative_error(actual, wanted) <= tolerance(dtype, "lora_forward")
    dx, dz, adapters = gradients
    pairs = [(dx, true_gradients[0]), (dz, true_gradients[1])][: 1 if dz is None else 2]
    for ours, theirs in zip(adapters, true_gradients[2], strict=True):
        assert (ours.a.dtype, ours.b.dtype) == (jnp.float32, jnp.float32)
        pairs += [(ours.a, theirs.a), (ours.b, theirs.b)]
    for actual, wanted in pairs:
        assert relative_error(actual, wanted) <= tolerance(dtype, "lora_slope")


def test_the_kernel_writes_every_share_it_sums() -> None:
    """Rows and columns that end a strip or a block early: 5 strips, 3 blocks."""
    draw = normal(1)
    dy, b, p = (jnp.asarray(draw(s), jnp.float32) for s in ((70, 300), (300, 20), (70, 20)))
    part = Part(0, 300, 0, 20)
    (q,), (db,), copied = triton.slopes([dy], None, b, p, [part], 4, interpret=True)
    (true_q,), (true_db,), _ = group.slopes([dy], None, b, p, [part], 4)
    np.testing.assert_array_equal(copied[:, :300], dy)
    for actual, wanted in ((q, true_q), (db, true_db)):
        assert relative_error(actual, wanted) <= tolerance("float32", "lora_slope")


@pytest.mark.parametrize("backend", BACKENDS)
def test_prepared_adapters_are_read_by_the_layers_index(backend: str) -> None:
    case = Case(name="prepared", M=35, I=64, O=(96, 32), R=(3, 5))
    inputs, dys = make_inputs(case, "float32", normal(0)), cotangents(case, "float32")
    weights = [
        jax.tree.map(lambda a: jnp.stack([a[0]] * 2) if a.ndim > 1 else a, weight)
        for weight in inputs.weights
    ]
    weights = [
        replace(w, nested=replace(w.nested, offset=jnp.repeat(w.nested.offset, 2))) for w in weights
    ]
    layers = [
        Adapter(*(jnp.stack([2 * one, one]) for one in adapter)) for adapter in inputs.adapters
    ]
    prepared = prepare_adapters(layers, "float32")

    @jax.jit
    def both(layer: jax.Array, prepared: Any) -> Any:
        def call(x: jax.Array, adapters: tuple[Adapter, ...]) -> Any:
            return lora_linear(
                x, weights, adapters, layer=layer, prepared=prepared, backend=backend
            )

        own = tuple(Adapter(*(one[layer] for one in stack)) for stack in layers)
        y, pull = jax.vjp(call, inputs.x, own)
        return y, pull(dys)

    for layer in jnp.arange(2):
        jax.tree.map(np.testing.assert_array_equal, both(layer, prepared), both(layer, None))


def test_several_adapters_over_one_weight() -> None:
    case = Case(name="adapters", M=8, I=64, O=(96,), R=(4,))
    inputs = make_inputs(case, "float32", normal(0))
    draw = normal(3)
    a, b = jnp.asarray(draw((3, 4, 64))), jnp.asarray(draw((3, 96, 4)))
    x = jnp.asarray(draw((3, 8, 64)))

    def one(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return lora_linear(x, inputs.weights, [Adapter(a, b, jnp.float32(2))])[0]

    together, alone = jax.jit(jax.vmap(one))(x, a, b), jax.jit(one)
    for index in range(3):
        apart = alone(x[index], a[index], b[index])
        assert relative_error(together[index], apart) <= tolerance("float32", "lora_forward")


def test_what_does_not_fit_is_refused() -> None:
    inputs = make_inputs(ODD_CASES[1], "float32", normal(0))
    (weight,), (adapter,) = inputs.weights, inputs.adapters
    with pytest.raises(ValueError, match="must be as many, one at least; got 0 and 0"):
        lora_linear(inputs.x, [], [])
    with pytest.raises(ValueError, match=r"A \[r, I\] and B \[O, r\]"):
        lora_linear(inputs.x, [weight], [adapter._replace(b=jnp.zeros((10, 2)))])
    with pytest.raises(ValueError, match="`dropped` must have x's shape"):
        lora_linear(inputs.x, [weight], [adapter], dropped=inputs.x[:3])
    other = prepare_adapters([Adapter(*(one[None] for one in adapter))], "bfloat16")
    with pytest.raises(ValueError, match="`prepared` must come from `prepare_adapters`"):
        lora_linear(inputs.x, [weight], [adapter], prepared=other)
    large = Adapter(jnp.zeros((512, 24)), jnp.zeros((10, 512)), jnp.float32(1))
    assert lora_linear(inputs.x, [weight], [large])[0].shape == (37, 10)
    with pytest.raises(Unsupported, match="ranks must be 64 at most; got 512"):
        lora_linear(inputs.x, [weight], [large], backend="interpret")
