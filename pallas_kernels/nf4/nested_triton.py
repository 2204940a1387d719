"""The 8-bit codes of absmax as a Pallas Triton kernel: one pass, where plain JAX makes several."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, UInt8

from pallas_kernels.dispatch import serves_all
from pallas_kernels.nf4.nested_xla import BLOCK, MIDDLES, nearest
from pallas_kernels.nf4.quantize_triton import reciprocal
from pallas_kernels.nf4.quantize_xla import SMALLEST
from pallas_kernels.pallas_triton import backends, plt, whole

BLOCKS = 1  # nested blocks a program: there are few, and each is a chain of look-ups
WARPS = 4


def forward(
    absmax: Float[Array, " N"], offset: Float[Array, ""], *, interpret: bool = False
) -> tuple[UInt8[Array, " N"], Float[Array, " _"]]:
    """Codes, and the scale of each block; see `nested_xla.forward`."""
    count = absmax.size
    out = (
        jax.ShapeDtypeStruct((count,), jnp.uint8),
        jax.ShapeDtypeStruct((-(-count // BLOCK),), jnp.float32),
    )
    operands = (absmax, offset.reshape(1), jnp.asarray(MIDDLES, jnp.float32))
    return pl.pallas_call(
        partial(_kernel, count, interpret),
        out_shape=out,
        grid=(pl.cdiv(count, BLOCKS * BLOCK),),
        in_specs=[whole(array) for array in operands],
        out_specs=tuple(whole(array) for array in out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="nf4_nested_quantize",
    )(*operands)


def _kernel(
    count: int,
    interpret: bool,
    absmax_ref: jax.Ref,
    offset_ref: jax.Ref,
    middles_ref: jax.Ref,
    codes_ref: jax.Ref,
    scales_ref: jax.Ref,
) -> None:
    place = pl.program_id(0) * (BLOCKS * BLOCK) + jnp.arange(BLOCKS * BLOCK)
    inside = place < count
    absmax = plt.load(absmax_ref.at[place], mask=inside, other=0.0)
    x = jnp.where(inside, absmax - offset_ref[0], 0.0).reshape(BLOCKS, BLOCK)
    scale = jnp.max(jnp.abs(x), axis=1)
    x = x * reciprocal(jnp.maximum(scale, SMALLEST), interpret)[:, None]
    code = nearest(x.reshape(BLOCKS * BLOCK), lambda index: plt.load(middles_ref.at[index]))
    plt.store(codes_ref.at[place], code.astype(jnp.uint8), mask=inside)
    block = pl.program_id(0) * BLOCKS + jnp.arange(BLOCKS)
    plt.store(scales_ref.at[block], scale, mask=block * BLOCK < count)


BACKEND, INTERPRET = backends(forward, serves_all)
