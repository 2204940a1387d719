"""The LoRA products of a group of projections, over one product that backends differ in."""

import functools
import itertools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.lora_linear.base import matrix_of
from pallas_kernels.lora_linear.contract import Adapter, Inputs, Options, Residuals
from pallas_kernels.nf4.api import dequantize_nf4
from pallas_kernels.nf4.contract import NF4

# From dy [..., O], B [O, r] and p [..., r]: dy B [..., r] and dy^T p [O, r], both float32.
Slopes = Callable[[Array, Array, Array], tuple[Array, Array]]

ALIGNED = 16  # columns; rows of a product's operands begin at multiples of 32 bytes


def forward(options: Options, inputs: Inputs) -> tuple[tuple[Float[Array, "*B _"], ...], Residuals]:
    """y_j for every projection, and what `backward` needs."""
    x = inputs.x
    with jax.named_scope("lora"):
        p = _inner(inputs)
    residuals = Residuals(inputs, p)
    stacks = [weight for weight in inputs.weights if isinstance(weight, NF4)]
    # Where a copy of x beside p costs no more than the sums that it saves.
    if (
        len(stacks) == len(inputs.weights)
        and sum(stack.shape[1] for stack in stacks) >= x.shape[-1]
    ):
        return _joined(options, inputs, stacks, p), residuals
    outputs, parts = [], _split(p, inputs.adapters)
    for weight, adapter, part in zip(inputs.weights, inputs.adapters, parts, strict=True):
        y = x @ matrix_of(weight, inputs.layer, x, options.kernels).T
        with jax.named_scope("lora"):
            outputs.append(y + part @ adapter.b.astype(x.dtype).T)
    return tuple(outputs), residuals


def backward(
    slopes: Slopes, options: Options, residuals: Residuals, dys: tuple[Array, ...]
) -> Inputs:
    """Cotangents of the inputs; None, JAX's zero, for what is frozen."""
    inputs, adapters = residuals.inputs, residuals.inputs.adapters
    z = inputs.x if inputs.dropped is None else inputs.dropped
    with jax.named_scope("lora"):
        parts = _split(residuals.p, adapters)
        pairs = [
            slopes(dy, adapter.b.astype(dy.dtype), part)
            for dy, adapter, part in zip(dys, adapters, parts, strict=True)
        ]
        q = (jnp.concatenate([q for q, _ in pairs], axis=-1) * _scales(adapters)).astype(z.dtype)
        das = _split(_contract(q, z).T, adapters)
        dz = q @ _stacked(adapters, z)
    terms = [
        dy @ matrix_of(weight, inputs.layer, dy, options.kernels)
        for dy, weight in zip(dys, inputs.weights, strict=True)
    ]
    if inputs.dropped is None:
        terms, dz = [*terms, dz], None
    dx = functools.reduce(operator.add, terms)
    gradients = tuple(
        Adapter(da.T.astype(adapter.a.dtype), db.astype(adapter.b.dtype), None)  # pyrefly: ignore
        for adapter, da, (_, db) in zip(adapters, das, pairs, strict=True)
    )
    # None is JAX's zero cotangent; Inputs types primals.
    return Inputs(dx, dz, None, gradients, None)  # pyrefly: ignore[bad-argument-type]


def slopes(
    dy: Float[Array, "*B O"], b: Float[Array, "O R"], p: Float[Array, "*B R"]
) -> tuple[Float[Array, "*B R"], Float[Array, "O R"]]:
    """The product dy B, and dy^T p; float32, float64 for float64."""
    return jnp.matmul(dy, b, preferred_element_type=_wide(dy)), _contract(dy, p)


def _inner(inputs: Inputs) -> Float[Array, "*B R"]:
    """All p_j side by side: one product reads z once."""
    z = inputs.x if inputs.dropped is None else inputs.dropped
    product = jnp.matmul(z, _stacked(inputs.adapters, z).T, preferred_element_type=_wide(z))
    return (product * _scales(inputs.adapters)).astype(z.dtype)


def _joined(
    options: Options, inputs: Inputs, stacks: list[NF4], p: Float[Array, "*B R"]
) -> tuple[Float[Array, "*B _"], ...]:
    """The products y_j = [x, p, 0] [W_j, 0, B_j, 0]^T."""
    x, ranks = inputs.x, [adapter.a.shape[0] for adapter in inputs.adapters]
    extra = sum(ranks) + -sum(ranks) % ALIGNED
    room = [(0, 0)] * (x.ndim - 1) + [(0, extra - sum(ranks))]
    wide = jnp.concatenate([x, jnp.pad(p, room)], axis=-1)
    outputs = []
    ends = itertools.accumulate(ranks)
    for weight, adapter, end in zip(stacks, inputs.adapters, ends, strict=True):
        rank = adapter.a.shape[0]
        beside = jnp.pad(adapter.b.astype(x.dtype), ((0, 0), (end - rank, extra - end)))
        with jax.named_scope("dequantize"):
            matrix = dequantize_nf4(
                weight, inputs.layer, x.dtype, beside=beside, backend=options.kernels
            )
        outputs.append(wide @ matrix.T)
    return tuple(outputs)


def _stacked(adapters: tuple[Adapter, ...], like: Array) -> Float[Array, "R I"]:
    return jnp.concatenate([adapter.a.astype(like.dtype) for adapter in adapters])


def _scales(adapters: tuple[Adapter, ...]) -> Float[Array, " R"]:
    """The scale of every row of the stacked A."""
    return jnp.concatenate(
        [jnp.full(adapter.a.shape[0], adapter.scale, jnp.float32) for adapter in adapters]
    )


def _split(p: Float[Array, "*B R"], adapters: tuple[Adapter, ...]) -> list[Array]:
    """Columns of each adapter."""
    ends = list(itertools.accumulate(adapter.a.shape[0] for adapter in adapters))
    return jnp.split(p, ends[:-1], axis=-1)


def _contract(x: Float[Array, "*B K"], y: Float[Array, "*B N"]) -> Float[Array, "K N"]:
    """The product x^T y, summed over all rows."""
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return jnp.matmul(flat_x.T, flat_y, preferred_element_type=_wide(x))


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
