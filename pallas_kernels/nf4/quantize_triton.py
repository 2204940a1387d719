"""Quantisation as a Pallas Triton kernel: the weight is read once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, UInt8

from pallas_kernels.blockwise_quant.rounding import reciprocal
from pallas_kernels.nf4.tables import CELLS, cells
from pallas_kernels.nf4.triton import refuse
from pallas_kernels.pallas_triton import backends, instruction, plt, refuse_dtype, whole

CODES = 1024  # bytes of codes that a program writes: two tiles of 1,024 weights
WARPS = 2
MAGNITUDE = 2**31 - 1  # the bits of a float32 without its sign
INFINITY = 0x7F800000


def forward(
    weight: Float[Array, " N"], block: int, *, interpret: bool = False
) -> tuple[UInt8[Array, " C"], Float[Array, " _"]]:
    """Codes in our order, and absmax; see `quantize_xla.forward`."""
    half = weight.size // 2  # whole blocks, by `refuse`
    middles, codes = cells()
    tables = (jnp.asarray(middles, jnp.float32), jnp.asarray(codes, jnp.int32))
    out = (
        jax.ShapeDtypeStruct((half,), jnp.uint8),
        jax.ShapeDtypeStruct((2 * half // block,), jnp.float32),
    )
    return pl.pallas_call(
        partial(_kernel, half, block, interpret),
        out_shape=out,
        grid=(pl.cdiv(half, CODES),),
        in_specs=[whole(array) for array in (weight, *tables)],
        out_specs=tuple(whole(array) for array in out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="nf4_quantize",
    )(weight, *tables)


def _kernel(
    half: int,
    block: int,
    interpret: bool,
    weight_ref: jax.Ref,
    middles_ref: jax.Ref,
    lowest_ref: jax.Ref,
    codes_ref: jax.Ref,
    absmax_ref: jax.Ref,
) -> None:
    start, blocks = pl.program_id(0) * CODES, CODES // block
    place = start + jnp.arange(CODES)
    ragged = half % CODES != 0
    inside = place < half if ragged else None
    packed = jnp.zeros(CODES, jnp.int32)
    for first, shift in ((0, 4), (half, 0)):
        x = plt.load(weight_ref.at[first + place], mask=inside, other=0.0 if ragged else None)
        x = x.astype(jnp.float32).reshape(blocks, block)
        # As integers magnitudes have their order, and NaNs, which a maximum may drop, are the last.
        bits = jnp.max(jax.lax.bitcast_convert_type(x, jnp.int32) & MAGNITUDE, axis=1)
        absmax = jax.lax.bitcast_convert_type(jnp.minimum(bits, INFINITY), jnp.float32)
        scaled = x * reciprocal(absmax, compiled=not interpret)[:, None]
        scaled = scaled.reshape(CODES)
        # A middle is far from a cell's edge, so the cell's own rounding does not matter.
        cell = truncated(scaled * (CELLS / 2) + CELLS / 2, interpret)
        above = scaled > plt.load(middles_ref.at[cell])
        packed |= (plt.load(lowest_ref.at[cell]) + above.astype(jnp.int32)) << shift
        index = start // block + jnp.arange(blocks)
        held = index * block < half if ragged else None
        plt.store(absmax_ref.at[first // block + index], absmax, mask=held)
    plt.store(codes_ref.at[place], packed.astype(jnp.uint8), mask=inside)


def truncated(x: Array, interpret: bool) -> Array:
    """The integer part of x in [0, 2^31), 0 for NaN; Pallas' own cast compares twice first."""
    if interpret:
        return jnp.nan_to_num(x).astype(jnp.int32)
    return instruction("cvt.rzi.u32.f32", x, "int32")


BACKEND, INTERPRET = backends(forward, refuse, refuse_dtype)
