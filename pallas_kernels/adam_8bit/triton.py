"""The step as a Pallas Triton kernel: everything is read once and written once, in place.

16 bytes an element in float32: p, g and 2 codes are read, the change of p and 2 codes are written.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.adam_8bit.contract import Decays, Moments
from pallas_kernels.adam_8bit.formula import change, next_moments
from pallas_kernels.blockwise_quant.contract import BLOCK, Blockwise
from pallas_kernels.blockwise_quant.rounding import reciprocal
from pallas_kernels.blockwise_quant.search import keep_sign, nearest
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLES, MIDDLES
from pallas_kernels.blockwise_quant.triton import BLOCKS, refuse, spread, tile
from pallas_kernels.pallas_triton import backends, plt, whole

WARPS = 4


def forward(
    p: Float[Array, "L N"],
    g: Float[Array, "L N"],
    moments: Moments,
    scalars: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
    decays: Decays,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "L N"], Moments]:
    """One step; see `xla.forward`."""
    rows = p.shape[0]
    blocks = moments.first.codes.shape[1]
    flat = (rows, blocks * BLOCK)
    tables = [
        jnp.asarray(table[signed], jnp.float32)
        for signed in (True, False)
        for table in (DYNAMIC_TABLES, MIDDLES)
    ]
    codes = jax.ShapeDtypeStruct(flat, jnp.uint8)
    absmax = jax.ShapeDtypeStruct((rows, blocks), jnp.float32)
    operands = (
        g,
        moments.first.codes.reshape(flat),
        moments.second.codes.reshape(flat),
        p,
        moments.first.absmax,
        moments.second.absmax,
        jnp.stack(scalars),
        *tables,
    )
    out = (jax.ShapeDtypeStruct(p.shape, jnp.float32), codes, codes, absmax, absmax)
    # Gradient and codes are written over. absmax is not: threads share its elements.
    in_place = {1: 1, 2: 2} | ({0: 0} if g.dtype == jnp.float32 else {})
    changed, first, second, first_absmax, second_absmax = pl.pallas_call(
        partial(_kernel, decays, interpret),
        out_shape=out,
        grid=(pl.cdiv(blocks, BLOCKS), rows),
        in_specs=[whole(array) for array in operands],
        out_specs=tuple(whole(array) for array in out),
        input_output_aliases=in_place,
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="adam_8bit",
    )(*operands)
    shape = moments.first.codes.shape
    return changed, Moments(
        first=Blockwise(codes=first.reshape(shape), absmax=first_absmax, signed=True),
        second=Blockwise(codes=second.reshape(shape), absmax=second_absmax, signed=False),
    )


def _kernel(decays: Decays, interpret: bool, *refs: jax.Ref) -> None:
    """One tile of one tensor.

    refs: g, codes of m and v, p, absmax of m and v, scalars, and for each type its values and
    their middles; then the change of p, and codes and absmax of both moments.
    """
    g_ref, *before, p_ref, m_scale_ref, v_scale_ref, scalars_ref = refs[:7]
    m_tables, v_tables = refs[7:9], refs[9:11]
    change_ref, m_ref, v_ref, m_absmax_ref, v_absmax_ref = refs[11:]
    size, blocks = p_ref.shape[1], m_scale_ref.shape[1]
    row, place, block = tile()
    inside, held = place < size, block < blocks
    stored = place < blocks * BLOCK

    def read(codes_ref: jax.Ref, absmax_ref: jax.Ref, table_ref: jax.Ref) -> Array:
        code = plt.load(codes_ref.at[row, place], mask=stored, other=0).astype(jnp.int32)
        absmax = plt.load(absmax_ref.at[row, block], mask=held, other=0.0)
        return plt.load(table_ref.at[code]) * spread(absmax)

    g = plt.load(g_ref.at[row, place], mask=inside, other=0.0).astype(jnp.float32)
    m = read(before[0], m_scale_ref, m_tables[0])
    v = read(before[1], v_scale_ref, v_tables[0])
    moved = next_moments(g, m, v, decays.b1, decays.b2)
    p = plt.load(p_ref.at[row, place], mask=inside, other=0.0)
    scalars = (scalars_ref[0], scalars_ref[1], scalars_ref[2])
    changed = change(p, moved, scalars, decays=decays.weight_decay != 0)
    plt.store(change_ref.at[row, place], changed, mask=inside)

    def write(x: Array, signed: bool, codes_ref: jax.Ref, absmax_ref: jax.Ref) -> None:
        middles_ref = (m_tables if signed else v_tables)[1]
        x = x.reshape(BLOCKS, BLOCK)
        absmax = jnp.max(jnp.abs(x), axis=1)
        scaled = (x * reciprocal(absmax, compiled=not interpret)[:, None]).reshape(BLOCKS * BLOCK)
        code = nearest(scaled, lambda index: plt.load(middles_ref.at[index]), signed=signed)
        code = keep_sign(code, scaled) if signed else code
        plt.store(codes_ref.at[row, place], code.astype(jnp.uint8), mask=stored)
        plt.store(absmax_ref.at[row, block], absmax, mask=held)

    write(moved[0], True, m_ref, m_absmax_ref)
    write(moved[1], False, v_ref, v_absmax_ref)


BACKEND, INTERPRET = backends(forward, refuse)
