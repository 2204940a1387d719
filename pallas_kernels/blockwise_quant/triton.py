"""Both ways as Pallas Triton kernels: each byte is read and written once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.blockwise_quant.contract import BLOCK, Blockwise
from pallas_kernels.blockwise_quant.rounding import reciprocal
from pallas_kernels.blockwise_quant.search import keep_sign, nearest
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLES, MIDDLES
from pallas_kernels.dispatch import Problem
from pallas_kernels.pallas_triton import backends, plt, whole

BLOCKS = 4  # blocks a program
WARPS = 4
UNSAFE_BYTES = (2**31, 2**32)  # Triton's 32-bit offsets into codes of this size would be wrong
DTYPES = ("float32", "bfloat16", "float16")


def quantize(
    x: Float[Array, "L N"], *, signed: bool, keeps_sign: bool = False, interpret: bool = False
) -> Blockwise:
    """Codes and absmax of each row; see `xla.quantize`."""
    rows, size = x.shape
    blocks = pl.cdiv(size, BLOCK)
    out = (
        jax.ShapeDtypeStruct((rows, blocks * BLOCK), jnp.uint8),
        jax.ShapeDtypeStruct((rows, blocks), jnp.float32),
    )
    operands = (x, jnp.asarray(MIDDLES[signed], jnp.float32))
    codes, absmax = pl.pallas_call(
        partial(_quantize_kernel, signed, keeps_sign, interpret),
        out_shape=out,
        grid=(pl.cdiv(blocks, BLOCKS), rows),
        in_specs=[whole(array) for array in operands],
        out_specs=tuple(whole(array) for array in out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="blockwise_quantize",
    )(*operands)
    return Blockwise(codes=codes.reshape(rows, blocks, BLOCK), absmax=absmax, signed=signed)


def _quantize_kernel(
    signed: bool,
    keeps_sign: bool,
    interpret: bool,
    x_ref: jax.Ref,  # [L, N]
    middles_ref: jax.Ref,  # [255]
    codes_ref: jax.Ref,  # [L, blocks * 256]
    absmax_ref: jax.Ref,  # [L, blocks]
) -> None:
    size, blocks = x_ref.shape[1], absmax_ref.shape[1]
    row, place, block = tile()
    x = plt.load(x_ref.at[row, place], mask=place < size, other=0.0)
    x = x.astype(jnp.float32).reshape(BLOCKS, BLOCK)
    # A maximum may drop a NaN; an infinity it keeps.
    absmax = jnp.max(jnp.where(x == x, jnp.abs(x), jnp.inf), axis=1)
    scaled = (x * reciprocal(absmax, compiled=not interpret)[:, None]).reshape(BLOCKS * BLOCK)
    code = nearest(scaled, lambda index: plt.load(middles_ref.at[index]), signed=signed)
    code = keep_sign(code, scaled) if keeps_sign else code
    plt.store(codes_ref.at[row, place], code.astype(jnp.uint8), mask=place < blocks * BLOCK)
    plt.store(absmax_ref.at[row, block], absmax, mask=block < blocks)


def dequantize(
    blocks: Blockwise, size: int, dtype: DTypeLike, *, interpret: bool = False
) -> Float[Array, "L N"]:
    """Values of each row; see `xla.dequantize`."""
    rows, count, _ = blocks.codes.shape
    out = jax.ShapeDtypeStruct((rows, size), dtype)
    table = jnp.asarray(DYNAMIC_TABLES[blocks.signed], jnp.float32)
    operands = (blocks.codes.reshape(rows, count * BLOCK), blocks.absmax, table)
    return pl.pallas_call(
        _dequantize_kernel,
        out_shape=out,
        grid=(pl.cdiv(count, BLOCKS), rows),
        in_specs=[whole(array) for array in operands],
        out_specs=whole(out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="blockwise_dequantize",
    )(*operands)


def _dequantize_kernel(
    codes_ref: jax.Ref,  # [L, blocks * 256]
    absmax_ref: jax.Ref,  # [L, blocks]
    table_ref: jax.Ref,  # [256]
    out_ref: jax.Ref,  # [L, N]
) -> None:
    size, blocks = out_ref.shape[1], absmax_ref.shape[1]
    row, place, block = tile()
    code = plt.load(codes_ref.at[row, place], mask=place < blocks * BLOCK, other=0)
    absmax = plt.load(absmax_ref.at[row, block], mask=block < blocks, other=0.0)
    value = plt.load(table_ref.at[code.astype(jnp.int32)]) * spread(absmax)
    plt.store(out_ref.at[row, place], value.astype(out_ref.dtype), mask=place < size)


def tile() -> tuple[Array, Array, Array]:
    """A program's row, its places in it [BLOCKS * 256], and its blocks [BLOCKS]."""
    first = pl.program_id(0) * BLOCKS
    return (
        pl.program_id(1),
        first * BLOCK + jnp.arange(BLOCKS * BLOCK),
        first + jnp.arange(BLOCKS),
    )


def spread(absmax: Float[Array, " B"]) -> Float[Array, " _"]:
    """Each block's number beside each of its elements."""
    return jnp.broadcast_to(absmax[:, None], (BLOCKS, BLOCK)).reshape(BLOCKS * BLOCK)


def refuse(problem: Problem) -> str | None:
    """Say why the kernels cannot serve a problem."""
    if problem.dtype not in DTYPES:
        return f"values must be {', '.join(DTYPES)}; got {problem.dtype}"
    size = problem.sizes["L"] * pl.cdiv(problem.sizes["N"], BLOCK) * BLOCK
    if UNSAFE_BYTES[0] <= size < UNSAFE_BYTES[1]:
        return f"codes of 2 to 4 GiB have offsets that 32 bits cannot hold; got {size} bytes"
    return None


QUANTIZE, QUANTIZE_INTERPRET = backends(quantize, refuse)
DEQUANTIZE, DEQUANTIZE_INTERPRET = backends(dequantize, refuse)
