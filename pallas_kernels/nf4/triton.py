"""Dequantisation as a Pallas Triton kernel that reads one layer of the whole stack.

A slice of the stack as an operand would be copied first (1.03 bytes an element, of 2.52 that the
kernel moves), so the kernel takes the stack and the layer's index.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.dispatch import Problem
from pallas_kernels.nf4.contract import NF4, Beside, NestedAbsmax
from pallas_kernels.nf4.rounding import rounded_product
from pallas_kernels.pallas_triton import backends, plt, whole

CODES = 1024  # bytes of codes that a program reads: two tiles of 1,024 weights
WARPS = 2
UNSAFE_BYTES = (2**31, 2**32)  # Triton's 32-bit offsets into a stack of this size would be wrong


def forward(
    weights: Sequence[NF4],
    layer: Int[Array, ""],
    dtype: DTypeLike,
    beside: Beside | None = None,
    below: int = 0,
    *,
    interpret: bool = False,
) -> Float[Array, "OB IE"]:
    """One layer of each weight; see `xla.forward`. Each kernel writes its rows of one matrix."""
    extra = 0 if beside is None else beside.width
    width = weights[0].matrix[1] + extra
    rows = sum(weight.matrix[0] for weight in weights) + below
    matrix, first = None, 0
    for number, weight in enumerate(weights):
        place = Place(
            first_row=first,
            size=rows * width,
            extra=extra,
            beside_row=0 if beside is None else beside.first_row + first,
            beside_column=0 if beside is None else beside.columns[number],
        )
        matrix = _write(weight, layer, dtype, beside, matrix, place, interpret)
        first += weight.matrix[0]
    return matrix.reshape(rows, width)  # pyrefly: ignore[missing-attribute]  one weight at least


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a weight stands in a matrix that may hold more.

    Attributes:
      first_row: Of the matrix.
      size: Elements of the matrix.
      extra: Columns that follow the weight's.
      beside_row: Row of `Beside.stack` that follows the weight's first.
      beside_column: Where in the further columns it begins.
    """

    first_row: int
    size: int
    extra: int
    beside_row: int
    beside_column: int


def _write(
    weight: NF4,
    layer: Int[Array, ""],
    dtype: DTypeLike,
    beside: Beside | None,
    matrix: Float[Array, " _"] | None,
    place: Place,
    interpret: bool,
) -> Float[Array, " _"]:
    """The flat matrix, of which one weight's rows are written; None: a new one."""
    tile = _tile(weight.codes.shape[1], weight.matrix[1] if place.extra else 0)
    # In the order of `_kernel`'s refs.
    operands = [layer.reshape(1), *jax.tree.leaves(weight)]
    if beside is not None:
        operands += [beside.layer.reshape(1), beside.stack]
    if matrix is not None:
        operands.append(matrix)
    out = jax.ShapeDtypeStruct((place.size,), dtype)
    return pl.pallas_call(
        partial(_kernel, weight, dtype, tile, place),
        out_shape=out,
        grid=(pl.cdiv(weight.codes.shape[1], tile),),
        in_specs=[whole(operand) for operand in operands],
        out_specs=whole(out),
        input_output_aliases={} if matrix is None else {len(operands) - 1: 0},
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="nf4_dequantize",
    )(*operands)


def _tile(half: int, columns: int) -> int:
    """Codes a program: `CODES`, or the largest power of two below it that ends with each row.

    The second half's tiles begin at `half`, which is in the middle of a row if rows are odd.
    """
    return CODES if columns == 0 else math.gcd(CODES, columns, half)


def _kernel(weight: NF4, dtype: DTypeLike, tile: int, place: Place, *refs: jax.Ref) -> None:
    """Two tiles: the high nibbles of some bytes, and the low ones half the weight further on."""
    layer_ref, codes_ref, absmax_ref, table_ref, *others, out_ref = refs
    nested = 0 if weight.nested is None else 3
    half, (rows, columns) = weight.codes.shape[1], weight.matrix
    layer, start = layer_ref[0], pl.program_id(0) * tile
    index = jnp.arange(tile)
    ragged = half % tile != 0
    inside = start + index < half if ragged else None
    packed = plt.load(codes_ref.at[layer, start + index], mask=inside, other=0 if ragged else None)
    packed = packed.astype(jnp.int32)
    blocks = tile // weight.block
    for begin, code in ((start, packed >> 4), (half + start, packed & 15)):
        block = begin // weight.block + jnp.arange(blocks)
        held = block * weight.block < rows * columns if ragged else None
        absmax = load_absmax(weight.nested, (absmax_ref, *others[:nested]), layer, block, held)
        scales = jnp.broadcast_to(absmax[:, None], (blocks, weight.block)).reshape(tile)
        value = plt.load(table_ref.at[code]) * scales
        written = place.first_row * (columns + place.extra) + begin
        if place.extra:  # a tile lies within a row
            row = begin // columns
            written += row * place.extra
            end = (place.first_row + row + 1) * (columns + place.extra)
            first_of_row = (begin % columns == 0) & (row < rows)
            _copy_beside(others[nested : nested + 2], place, row, first_of_row, end, out_ref)
        plt.store(
            out_ref.at[written + index],
            value.astype(weight.dtype).astype(dtype),
            mask=(start + index < half) & (begin + index < rows * columns) if ragged else None,
        )


def _copy_beside(
    refs: Sequence[jax.Ref],
    place: Place,
    row: Array,
    wanted: Bool[Array, ""],
    end: Array,
    out_ref: jax.Ref,
) -> None:
    """Write a row's further columns, which stand before `end`."""
    layer_ref, stack_ref = refs
    column = jnp.arange(pl.next_power_of_2(place.extra))
    own = column - place.beside_column
    held = (own >= 0) & (own < stack_ref.shape[2]) & wanted
    source = stack_ref.at[layer_ref[0], place.beside_row + row, own]
    values = plt.load(source, mask=held, other=0.0)
    inside = (column < place.extra) & wanted
    plt.store(out_ref.at[end - place.extra + column], values, mask=inside)


def load_absmax(
    nested: NestedAbsmax | None,
    refs: Sequence[jax.Ref],
    layer: Int[Array, ""],
    block: Int[Array, "..."],
    held: Bool[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """The absmax of some blocks, by the formula of `NF4`, in a kernel.

    Args:
      nested: Of the stack.
      refs: `NF4.absmax` and the arrays of `nested`.
      layer: Index of the layer.
      block: Indices of the blocks.
      held: Which of them there are; None: all.

    Returns:
      float32, of the shape of `block`.
    """
    absmax_ref, *nested_refs = refs
    masked = held is not None
    absmax = plt.load(absmax_ref.at[layer, block], mask=held, other=0 if masked else None)
    if nested is None:
        return absmax
    scale_ref, table_ref, offset_ref = nested_refs
    place = scale_ref.at[layer, block // nested.block]
    scale = plt.load(place, mask=held, other=0.0 if masked else None)
    value = plt.load(table_ref.at[absmax.astype(jnp.int32)])
    return rounded_product(value, scale) + offset_ref[layer]


def refuse(problem: Problem) -> str | None:
    """Say why the kernel cannot serve a problem."""
    half, block = problem.sizes["C"], problem.sizes["block"]
    tile = _tile(half, problem.sizes["I"] if problem.sizes.get("E") else 0)
    if problem.sizes.get("E") and tile % block:
        return (
            "with columns beside the weight, a row must be whole blocks; got rows of "
            f"{problem.sizes['I']}, blocks of {block}"
        )
    if half % block or tile % block:
        return f"half of the weight must be whole blocks; got {half} elements, blocks of {block}"
    size = problem.sizes["L"] * half
    if UNSAFE_BYTES[0] <= size < UNSAFE_BYTES[1]:
        return f"a stack of 2 to 4 GiB has offsets that 32 bits cannot hold; got {size} bytes"
    return None


BACKEND, INTERPRET = backends(forward, refuse)
