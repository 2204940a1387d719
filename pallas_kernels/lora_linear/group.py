"""The LoRA products of a group of projections, over one product that backends differ in."""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.lora_linear.base import few_rows, matrix_of, product
from pallas_kernels.lora_linear.contract import Adapter, Inputs, Options, Residuals
from pallas_kernels.nf4.api import dequantize_group
from pallas_kernels.nf4.contract import NF4, Beside

# Projections together at most so many times as wide as x are one product: the compiler would join
# those of narrow ones too, by a copy of the weights. Wide ones gain nothing.
NARROW = 2

# Rows of wide arrays begin at multiples of so many 16-bit numbers, 128 bytes: what memory and the
# products' tiles are cut into.
ALIGNED = 64


@dataclass(frozen=True)
class Part:
    """Where one projection stands in its group: its rows of B, and its columns of A^T.

    Attributes:
      row: Its first row.
      rows: O.
      column: Its first column.
      rank: r.
    """

    row: int
    rows: int
    column: int
    rank: int

    def of_rows(self, array: Array) -> Array:
        """Its share of an array whose first axis is that of B."""
        return array[self.row : self.row + self.rows]

    def own(self, b: Array) -> Array:
        """Its B, [O, r], of `Prepared.b`."""
        return self.of_rows(b)[:, : self.rank]

    def of_columns(self, array: Array) -> Array:
        """Its share of an array whose last axis is that of A^T."""
        return array[..., self.column : self.column + self.rank]


# From the dys, the same side by side or None, B [sum of O, R], p [..., sum of r], the parts and a
# number of columns: all dy_j B_j [..., r_j], every dy_j^T p_j [O_j, r_j], all float32; and, where
# that costs little, a copy of the only dy with room for so many columns.
Slopes = Callable[
    [Sequence[Array], Array | None, Array, Array, Sequence[Part], int],
    tuple[list[Array], list[Array], Array | None],
]


def forward(options: Options, inputs: Inputs) -> tuple[tuple[Float[Array, "*B _"], ...], Residuals]:
    """y_j for every projection, and what `backward` needs."""
    x, stacks = inputs.x, _stacks(inputs)
    with jax.named_scope("lora"):
        z = x if inputs.dropped is None else inputs.dropped
        a = _at(inputs, inputs.prepared.a)
        p = jnp.matmul(z, a.T, preferred_element_type=_wide(z)).astype(z.dtype)
    # Where a copy of x beside p costs no more than the sums that it saves.
    joins = inputs.prepared.b.shape[1] >= x.shape[-1] and not few_rows(x)
    if stacks is not None and joins:
        return _joined(options, inputs, stacks, p), Residuals(inputs, p)
    outputs, parts, b = [], _parts(inputs), _at(inputs, inputs.prepared.b)
    for weight, part in zip(inputs.weights, parts, strict=True):
        y = product(x, weight, inputs.layer, options.kernels)
        with jax.named_scope("lora"):
            outputs.append(y + part.of_columns(p) @ part.own(b).T)
    return tuple(outputs), Residuals(inputs, p)


def _joined(
    options: Options, inputs: Inputs, stacks: Sequence[NF4], p: Float[Array, "*B _"]
) -> tuple[Float[Array, "*B _"], ...]:
    """The products [y_0, y_1, ...] = [x, p] [W, B]^T."""
    x, b, parts = inputs.x, inputs.prepared.b, _parts(inputs)
    extra = _extra(p.shape[-1])
    with jax.named_scope("lora"):
        wide = jnp.concatenate([x, _to_width(p, extra)], axis=-1)
    # Each weight with its part of the group.
    pairs = list(zip(stacks, parts, strict=True))
    narrow = b.shape[1] <= NARROW * x.shape[-1]
    outputs = []
    for some in [pairs] if narrow else [[pair] for pair in pairs]:
        with jax.named_scope("dequantize"):
            columns = Beside(
                b, inputs.place, some[0][1].row, tuple(part.column for _, part in some), extra
            )
            matrix = dequantize_group(
                [stack for stack, _ in some],
                inputs.layer,
                x.dtype,
                beside=columns,
                backend=options.kernels,
            )
        ends = list(itertools.accumulate(part.rows for _, part in some))
        outputs += jnp.split(wide @ matrix.T, ends[:-1], axis=-1)
    return tuple(outputs)


def backward(
    slopes: Slopes, options: Options, residuals: Residuals, dys: tuple[Array, ...]
) -> Inputs:
    """Cotangents of the inputs; None, JAX's zero, for what is frozen."""
    inputs, parts = residuals.inputs, _parts(residuals.inputs)
    z = inputs.x if inputs.dropped is None else inputs.dropped
    a, b = _at(inputs, inputs.prepared.a), _at(inputs, inputs.prepared.b)
    stacks = _stacks(inputs) if inputs.dropped is None else None
    # Where a copy of the dys beside q costs no more than the sums that it saves.
    joins = stacks is not None and b.shape[0] <= z.shape[-1] * (len(dys) + 1)
    extra, wide = _extra(a.shape[0]) if joins else 0, None
    with jax.named_scope("lora"):
        if joins and len(dys) > 1:
            room = jnp.zeros((*z.shape[:-1], extra), z.dtype)
            wide = jnp.concatenate([*dys, room], axis=-1)
        qs, dbs, copied = slopes(dys, wide, b, residuals.p, parts, extra)
        q = jnp.concatenate(qs, axis=-1).astype(z.dtype)
        da = _contract(q, z)
        wide = wide if copied is None else copied
        if wide is not None:  # in place: nobody reads it without q any more
            wide = wide.at[..., b.shape[0] :].set(_to_width(q, extra))
        elif joins:
            wide = jnp.concatenate([*dys, _to_width(q, extra)], axis=-1)
    if wide is not None and stacks is not None:
        dx, dz = _joined_back(options, inputs, stacks, wide, a), None
    else:
        with jax.named_scope("lora"):
            dz = q @ a
        dx, dz = _summed_back(options, inputs, dys, dz)
    gradients = tuple(
        Adapter(
            (adapter.scale * da[part.column : part.column + part.rank]).astype(adapter.a.dtype),
            db.astype(adapter.b.dtype),
            None,  # pyrefly: ignore[bad-argument-type]
        )
        for adapter, part, db in zip(inputs.adapters, parts, dbs, strict=True)
    )
    # None is JAX's zero cotangent; Inputs types primals.
    return Inputs(dx, dz, None, gradients, None, None, None)  # pyrefly: ignore[bad-argument-type]


def _joined_back(
    options: Options,
    inputs: Inputs,
    stacks: Sequence[NF4],
    wide: Float[Array, "*B _"],
    a: Float[Array, "_ I"],
) -> Float[Array, "*B I"]:
    """The product dx = [dy_0, ..., q] [W_0; ...; A]."""
    rows = sum(stack.shape[1] for stack in stacks)
    extra = wide.shape[-1] - rows
    with jax.named_scope("dequantize"):
        matrix = dequantize_group(
            stacks, inputs.layer, wide.dtype, below=extra, backend=options.kernels
        )
        # What is below has no value yet, and a zero of q times it could be no zero.
        matrix = matrix.at[rows:].set(jnp.pad(a, ((0, extra - a.shape[0]), (0, 0))))
    return wide @ matrix


def _summed_back(
    options: Options, inputs: Inputs, dys: Sequence[Array], dz: Float[Array, "*B I"]
) -> tuple[Float[Array, "*B I"], Float[Array, "*B I"] | None]:
    """The sum dx of all dy_j W_j, and of dz unless that belongs to another input."""
    terms = [
        dy @ matrix_of(weight, inputs.layer, dy, options.kernels)
        for dy, weight in zip(dys, inputs.weights, strict=True)
    ]
    if inputs.dropped is not None:
        return functools.reduce(operator.add, terms), dz
    return functools.reduce(operator.add, [*terms, dz]), None


def slopes(
    dys: Sequence[Float[Array, "*B _"]],
    wide: Float[Array, "*B _"] | None,
    b: Float[Array, "O R"],
    p: Float[Array, "*B _"],
    parts: Sequence[Part],
    width: int,
) -> tuple[list[Float[Array, "*B _"]], list[Float[Array, "_ _"]], None]:
    """Every dy_j B_j, and every dy_j^T p_j, float32, float64 for float64; and no copy."""
    del wide, width
    pairs = list(zip(dys, parts, strict=True))
    qs = [jnp.matmul(dy, part.own(b), preferred_element_type=_wide(dy)) for dy, part in pairs]
    return qs, [_contract(dy, part.of_columns(p)) for dy, part in pairs], None


def _extra(ranks: int) -> int:
    """Columns that stand beside x or dy: as many as p or q has, and some of zeros."""
    return ranks + -ranks % ALIGNED


def _to_width(p: Float[Array, "*B _"], width: int) -> Float[Array, "*B _"]:
    """Add columns of zeros."""
    return jnp.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, width - p.shape[-1])])


def _at(inputs: Inputs, stack: Float[Array, "L _ _"]) -> Float[Array, "_ _"]:
    return lax.dynamic_index_in_dim(stack, inputs.place, keepdims=False)


def _stacks(inputs: Inputs) -> list[NF4] | None:
    """The weights if all are stacks of 4-bit ones."""
    stacks = [weight for weight in inputs.weights if isinstance(weight, NF4)]
    return stacks if len(stacks) == len(inputs.weights) else None


def _parts(inputs: Inputs) -> list[Part]:
    parts, row, column = [], 0, 0
    for adapter in inputs.adapters:
        rows, rank = adapter.b.shape
        parts.append(Part(row, rows, column, rank))
        row, column = row + rows, column + rank
    return parts


def _contract(x: Float[Array, "*B K"], y: Float[Array, "*B N"]) -> Float[Array, "K N"]:
    """The product x^T y, summed over all rows."""
    flat_x, flat_y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    return jnp.matmul(flat_x.T, flat_y, preferred_element_type=_wide(x))


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
