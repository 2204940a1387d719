"""Dequantisation as a Pallas Triton kernel that reads one layer of the whole stack.

A slice of the stack as an operand would be copied first (1.03 bytes an element, of 2.52 that the
kernel moves), so the kernel takes the stack and the layer's index.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.dispatch import Problem
from pallas_kernels.nf4.contract import NF4, NestedAbsmax
from pallas_kernels.nf4.rounding import rounded_product
from pallas_kernels.pallas_triton import backends, plt, whole

CODES = 1024  # bytes of codes that a program reads: two tiles of 1,024 weights
WARPS = 2
UNSAFE_BYTES = (2**31, 2**32)  # Triton's 32-bit offsets into a stack of this size would be wrong


def forward(
    weight: NF4,
    layer: Int[Array, ""],
    dtype: DTypeLike,
    beside: Float[Array, "O E"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "O IE"]:
    """One layer's weight; see `xla.forward`."""
    rows, columns = weight.matrix
    extra = 0 if beside is None else beside.shape[1]
    tile = _tile(weight.codes.shape[1], columns if extra else 0)
    operands = [layer.reshape(1), *jax.tree.leaves(weight)]  # in the order of `_kernel`'s refs
    out = jax.ShapeDtypeStruct((rows * (columns + extra),), dtype)
    flat = pl.pallas_call(
        partial(_kernel, weight, dtype, tile, extra),
        out_shape=out,
        grid=(pl.cdiv(weight.codes.shape[1], tile),),
        in_specs=[whole(operand) for operand in operands],
        out_specs=whole(out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="nf4_dequantize",
    )(*operands)
    wide = flat.reshape(rows, columns + extra)
    # In place: the kernel left these columns alone.
    return wide if beside is None else wide.at[:, columns:].set(beside)


def _tile(half: int, columns: int) -> int:
    """Codes a program: `CODES`, or the largest power of two below it that ends with each row.

    The second half's tiles begin at `half`, which is in the middle of a row if rows are odd.
    """
    return CODES if columns == 0 else math.gcd(CODES, columns, half)


def _kernel(weight: NF4, dtype: DTypeLike, tile: int, extra: int, *refs: jax.Ref) -> None:
    """Two tiles: the high nibbles of some bytes, and the low ones half the weight further on."""
    layer_ref, codes_ref, absmax_ref, table_ref, *nested_refs, out_ref = refs
    half, elements = weight.codes.shape[1], weight.matrix[0] * weight.matrix[1]
    layer, start = layer_ref[0], pl.program_id(0) * tile
    index = jnp.arange(tile)
    ragged = half % tile != 0
    inside = start + index < half if ragged else None
    packed = plt.load(codes_ref.at[layer, start + index], mask=inside, other=0 if ragged else None)
    packed = packed.astype(jnp.int32)
    blocks = tile // weight.block
    for first, code in ((0, packed >> 4), (half, packed & 15)):
        block = (first + start) // weight.block + jnp.arange(blocks)
        held = block * weight.block < elements if ragged else None
        absmax = load_absmax(weight.nested, (absmax_ref, *nested_refs), layer, block, held)
        scales = jnp.broadcast_to(absmax[:, None], (blocks, weight.block)).reshape(tile)
        value = plt.load(table_ref.at[code]) * scales
        place = first + start
        if extra:  # a tile lies within a row
            place += place // weight.matrix[1] * extra
        plt.store(
            out_ref.at[place + index],
            value.astype(weight.dtype).astype(dtype),
            mask=(start + index < half) & (first + start + index < elements) if ragged else None,
        )


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
