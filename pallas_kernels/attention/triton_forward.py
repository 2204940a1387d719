"""Forward kernel: one program attends for one block of queries of one head."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.attention import tiles
from pallas_kernels.attention.block_ranges import BlockRange, Index, key_range
from pallas_kernels.attention.block_sizes import Blocks
from pallas_kernels.attention.contract import Inputs, Options
from pallas_kernels.attention.xla import MASKED


def attend(
    options: Options, inputs: Inputs, limits: tiles.Limits, blocks: Blocks, *, interpret: bool
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Give o in q's dtype and lse in float32."""
    B, T, N, _ = inputs.q.shape
    results = (
        jax.ShapeDtypeStruct(inputs.q.shape, inputs.q.dtype),
        jax.ShapeDtypeStruct((B, N, T), jnp.float32),
    )
    return tiles.launch(
        partial(_kernel, options, blocks),
        "attention_forward",
        blocks,
        (N, B, pl.cdiv(T, blocks.q)),  # heads first: those that share keys run side by side
        (inputs.q, inputs.k, inputs.v, limits),
        results,
        interpret=interpret,
    )


def own_block(
    options: Options, limits: tiles.Limits, blocks: Blocks, T: int
) -> tuple[Index, BlockRange]:
    """A program's query block and the keys that it may see.

    The last block, which sees the most keys, goes first: short ones fill the gaps at the end.
    """
    block = pl.cdiv(T, blocks.q) - 1 - pl.program_id(2)
    if limits.ranges is not None:
        return block, tiles.read_range(limits.ranges, pl.program_id(1), block)
    window = limits.span(options)
    return block, key_range(block * blocks.q, blocks.q, blocks.k, T, window)


def _kernel(
    options: Options,
    blocks: Blocks,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    limits: tiles.Limits,
    o_ref: jax.Ref,
    lse_ref: jax.Ref,
) -> None:
    n, b = pl.program_id(0), pl.program_id(1)
    head = n // (q_ref.shape[2] // k_ref.shape[2])
    block, keys = own_block(options, limits, blocks, q_ref.shape[1])
    start, window, factor = block * blocks.q, limits.span(options), tiles.factor(options)
    q = tiles.load_rows(q_ref, b, n, start, blocks.q, edge=True)
    t = start + jnp.arange(blocks.q)[:, None]
    q_ids = tiles.load_ids(limits.q_ids, b, start, blocks.q, 1)

    def key_block(
        j: Index, carry: tuple[Array, Array, Array], edge: bool
    ) -> tuple[Array, Array, Array]:
        m, total, acc = carry
        first = j * blocks.k
        u = tiles.scores(options, q, tiles.load_rows(k_ref, b, head, first, blocks.k, edge=edge))
        mask = None
        if edge:
            s = first + jnp.arange(blocks.k)[None, :]
            kv_ids = tiles.load_ids(limits.kv_ids, b, first, blocks.k, 0)
            mask = tiles.visible(window, t, s, q_ids, kv_ids)
            u = jnp.where(mask, u, MASKED)
        # `factor` is positive, so the largest u has the largest logit.
        m_next = jnp.maximum(m, u.max(-1) * factor)
        p = jnp.exp2(u * factor - m_next[:, None])
        if mask is not None:  # a row that has seen nothing has m = MASKED * factor, and p = 1
            p = jnp.where(mask, p, 0)
        shrink = jnp.exp2(m - m_next)
        v = tiles.load_rows(v_ref, b, head, first, blocks.k, edge=edge)
        acc = acc * shrink[:, None] + tiles.product(p.astype(v.dtype), v, 0)
        return m_next, total * shrink + p.sum(-1), acc

    start_carry = (
        jnp.full(blocks.q, MASKED, jnp.float32),
        jnp.zeros(blocks.q, jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    m, total, acc = tiles.walk(keys, key_block, start_carry)
    seen = jnp.where(total == 0, 1, total)
    tiles.store_rows(o_ref, b, n, start, acc / seen[:, None])
    lse = jnp.where(total == 0, MASKED, m / tiles.LOG2_E + jnp.log(seen))
    tiles.store_line(lse_ref, (b, n), start, lse)
