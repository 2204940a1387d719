"""Dequantisation as a Pallas Triton kernel that reads one layer of the whole stack.

A slice of the stack as an operand would be copied first (1.03 bytes an element, of 2.52 that the
kernel moves), so the kernel takes the stack and the layer's index.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, Problem
from pallas_kernels.nf4.contract import NF4
from pallas_kernels.nf4.rounding import rounded_product
from pallas_kernels.pallas_triton import plt, refuse_interpreted
from pallas_kernels.pallas_triton import refuse as refuse_device

CODES = 1024  # bytes of codes that a program reads: two tiles of 1,024 weights
WARPS = 2
UNSAFE_BYTES = (2**31, 2**32)  # Triton's 32-bit offsets into a stack of this size would be wrong


def forward(
    weight: NF4, layer: Int[Array, ""], dtype: DTypeLike, *, interpret: bool = False
) -> Float[Array, "O I"]:
    """One layer's weight; see `xla.forward`."""
    elements = weight.matrix[0] * weight.matrix[1]
    operands = [layer.reshape(1), *jax.tree.leaves(weight)]  # in the order of `_kernel`'s refs
    out = jax.ShapeDtypeStruct((elements,), dtype)
    flat = pl.pallas_call(
        partial(_kernel, weight, dtype),
        out_shape=out,
        grid=(pl.cdiv(weight.codes.shape[1], CODES),),
        in_specs=[_whole(operand) for operand in operands],
        out_specs=_whole(out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="nf4_dequantize",
    )(*operands)
    return flat.reshape(weight.matrix)


def _kernel(weight: NF4, dtype: DTypeLike, *refs: jax.Ref) -> None:
    """Two tiles: the high nibbles of some bytes, and the low ones half the weight further on."""
    layer_ref, codes_ref, absmax_ref, table_ref, *nested_refs, out_ref = refs
    half, elements = weight.codes.shape[1], weight.matrix[0] * weight.matrix[1]
    nested = weight.nested
    layer, start = layer_ref[0], pl.program_id(0) * CODES
    place = start + jnp.arange(CODES)
    ragged = half % CODES != 0
    inside = place < half if ragged else None
    packed = plt.load(codes_ref.at[layer, place], mask=inside, other=0 if ragged else None)
    packed = packed.astype(jnp.int32)
    blocks = CODES // weight.block
    for first, code in ((0, packed >> 4), (half, packed & 15)):
        block = (first + start) // weight.block + jnp.arange(blocks)
        held = block * weight.block < elements if ragged else None
        absmax = plt.load(absmax_ref.at[layer, block], mask=held, other=0 if ragged else None)
        if nested is not None:
            scale_ref, nested_table_ref, offset_ref = nested_refs
            scale = plt.load(
                scale_ref.at[layer, block // nested.block],
                mask=held,
                other=0.0 if ragged else None,
            )
            value = plt.load(nested_table_ref.at[absmax.astype(jnp.int32)])
            absmax = rounded_product(value, scale) + offset_ref[layer]
        scales = jnp.broadcast_to(absmax[:, None], (blocks, weight.block)).reshape(CODES)
        value = plt.load(table_ref.at[code]) * scales
        plt.store(
            out_ref.at[first + place],
            value.astype(weight.dtype).astype(dtype),
            mask=(place < half) & (first + place < elements) if ragged else None,
        )


def _whole(operand: Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    rank = len(operand.shape)
    return pl.BlockSpec(operand.shape, lambda _: (0,) * rank)


def refuse(problem: Problem) -> str | None:
    """Say why the kernel cannot serve a problem."""
    half, block = problem.sizes["C"], problem.sizes["block"]
    if half % block or CODES % block:
        return f"half of the weight must be whole blocks; got {half} elements, blocks of {block}"
    size = problem.sizes["L"] * half
    if UNSAFE_BYTES[0] <= size < UNSAFE_BYTES[1]:
        return f"a stack of 2 to 4 GiB has offsets that 32 bits cannot hold; got {size} bytes"
    return None


def _refuse_compiled(problem: Problem) -> str | None:
    return refuse_device(problem.device) or refuse(problem)


def _refuse_interpreted(problem: Problem) -> str | None:
    return refuse_interpreted() or refuse(problem)


BACKEND = Backend(name="triton", refuse=_refuse_compiled, forward=forward)
INTERPRET = Backend(
    name="interpret",
    refuse=_refuse_interpreted,
    forward=partial(forward, interpret=True),
)
