"""Backward kernels: one for dk and dv, one for dq; both make the scores again.

  p = exp(z - lse);  dz = p * (dy v^T - delta) * (1 - u^2 with a soft-cap);  delta = sum_H dy * o
  dv = p^T dy;  dk = scale * dz^T q;  dq = scale * dz k

Two kernels that each sum in their own registers, so nothing is added atomically and equal inputs
give equal bits; it costs 7 products a pair of blocks, where one kernel with atomics has 5.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.attention import tiles
from pallas_kernels.attention.block_ranges import Index, query_range
from pallas_kernels.attention.block_sizes import Blocks
from pallas_kernels.attention.contract import Inputs, Options
from pallas_kernels.attention.triton_forward import own_block


def key_gradients(
    options: Options,
    inputs: Inputs,
    rows: tuple[Float[Array, "B T N H"], Float[Array, "B N T"], Float[Array, "B N T"]],
    limits: tiles.Limits,
    blocks: Blocks,
    *,
    interpret: bool,
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """(dk, dv); `rows` are dy, lse and delta.

    A program sums over the G query heads of its key head in registers: partial sums of every
    query head would be 2 G times the bytes of k and v, written and read again.
    """
    B, S, K, _ = inputs.k.shape
    return tiles.launch(
        partial(_key_kernel, options, blocks),
        "attention_backward_dkv",
        blocks,
        (K, B, pl.cdiv(S, blocks.k)),  # the first keys, which most queries see, go first
        (inputs.q, inputs.k, inputs.v, *rows, limits),
        tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (inputs.k, inputs.v)),
        interpret=interpret,
    )


def query_gradients(
    options: Options,
    inputs: Inputs,
    rows: tuple[Float[Array, "B T N H"], Float[Array, "B N T"], Float[Array, "B N T"]],
    limits: tiles.Limits,
    blocks: Blocks,
    *,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    """Give dq; `rows` are dy, lse and delta."""
    B, T, N, _ = inputs.q.shape
    return tiles.launch(
        partial(_query_kernel, options, blocks),
        "attention_backward_dq",
        blocks,
        (N, B, pl.cdiv(T, blocks.q)),
        (inputs.q, inputs.k, inputs.v, *rows, limits),
        jax.ShapeDtypeStruct(inputs.q.shape, inputs.q.dtype),
        interpret=interpret,
    )


def _key_kernel(  # noqa: PLR0913  (an argument an array)
    options: Options,
    blocks: Blocks,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    dy_ref: jax.Ref,
    lse_ref: jax.Ref,
    delta_ref: jax.Ref,
    limits: tiles.Limits,
    dk_ref: jax.Ref,
    dv_ref: jax.Ref,
) -> None:
    """Scores stand transposed, [keys, queries], so that no product transposes what is in registers.

    A query past T has q = dy = lse = delta = 0, so it adds nothing and needs no mask.
    """
    head, b, block = (pl.program_id(axis) for axis in range(3))
    group = q_ref.shape[2] // k_ref.shape[2]
    start, window, factor = block * blocks.k, limits.span(options), tiles.factor(options)
    if limits.ranges is None:
        queries = query_range(start, blocks.q, blocks.k, q_ref.shape[1], window)
    else:
        queries = tiles.read_range(limits.ranges, b, block)
    k = tiles.load_rows(k_ref, b, head, start, blocks.k, edge=True)
    v = tiles.load_rows(v_ref, b, head, start, blocks.k, edge=True)
    s = start + jnp.arange(blocks.k)[:, None]
    kv_ids = tiles.load_ids(limits.kv_ids, b, start, blocks.k, 1)

    def query_block(
        n: Index, i: Index, carry: tuple[Array, Array], edge: bool
    ) -> tuple[Array, Array]:
        dk, dv = carry
        first = i * blocks.q
        q = tiles.load_rows(q_ref, b, n, first, blocks.q, edge=edge)
        dy = tiles.load_rows(dy_ref, b, n, first, blocks.q, edge=edge)
        lse = tiles.load_line(lse_ref, (b, n), first, blocks.q, edge=edge)
        delta = tiles.load_line(delta_ref, (b, n), first, blocks.q, edge=edge)
        u = tiles.scores(options, k, q)
        p = jnp.exp2(u * factor - (lse * tiles.LOG2_E)[None, :])
        if edge:
            t = first + jnp.arange(blocks.q)[None, :]
            q_ids = tiles.load_ids(limits.q_ids, b, first, blocks.q, 0)
            p = jnp.where(tiles.visible(window, t, s, q_ids, kv_ids), p, 0)
        dv += tiles.product(p.astype(dy.dtype), dy, 0)
        dz = _score_gradient(options, u, p, tiles.product(v, dy, 1) - delta[None, :])
        return dk + tiles.product(dz.astype(q.dtype), q, 0), dv

    def query_head(g: Index, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return tiles.walk(queries, partial(query_block, head * group + g), carry)

    zero = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(0, group, query_head, (zero, zero))
    tiles.store_rows(dk_ref, b, head, start, dk * options.scale)
    tiles.store_rows(dv_ref, b, head, start, dv)


def _query_kernel(  # noqa: PLR0913  (an argument an array)
    options: Options,
    blocks: Blocks,
    q_ref: jax.Ref,
    k_ref: jax.Ref,
    v_ref: jax.Ref,
    dy_ref: jax.Ref,
    lse_ref: jax.Ref,
    delta_ref: jax.Ref,
    limits: tiles.Limits,
    dq_ref: jax.Ref,
) -> None:
    n, b = pl.program_id(0), pl.program_id(1)
    head = n // (q_ref.shape[2] // k_ref.shape[2])
    block, keys = own_block(options, limits, blocks, q_ref.shape[1])
    start, window, factor = block * blocks.q, limits.span(options), tiles.factor(options)
    q = tiles.load_rows(q_ref, b, n, start, blocks.q, edge=True)
    dy = tiles.load_rows(dy_ref, b, n, start, blocks.q, edge=True)
    lse = tiles.load_line(lse_ref, (b, n), start, blocks.q)[:, None] * tiles.LOG2_E
    delta = tiles.load_line(delta_ref, (b, n), start, blocks.q)[:, None]
    t = start + jnp.arange(blocks.q)[:, None]
    q_ids = tiles.load_ids(limits.q_ids, b, start, blocks.q, 1)

    def key_block(j: Index, dq: Array, edge: bool) -> Array:
        first = j * blocks.k
        k = tiles.load_rows(k_ref, b, head, first, blocks.k, edge=edge)
        v = tiles.load_rows(v_ref, b, head, first, blocks.k, edge=edge)
        u = tiles.scores(options, q, k)
        p = jnp.exp2(u * factor - lse)
        if edge:
            s = first + jnp.arange(blocks.k)[None, :]
            kv_ids = tiles.load_ids(limits.kv_ids, b, first, blocks.k, 0)
            p = jnp.where(tiles.visible(window, t, s, q_ids, kv_ids), p, 0)
        dz = _score_gradient(options, u, p, tiles.product(dy, v, 1) - delta)
        return dq + tiles.product(dz.astype(k.dtype), k, 0)

    dq = tiles.walk(keys, key_block, jnp.zeros(q.shape, jnp.float32))
    tiles.store_rows(dq_ref, b, n, start, dq * options.scale)


def _score_gradient(options: Options, u: Array, p: Array, dp: Array) -> Array:
    """Gradient of the scaled product of q and k."""
    dz = p * dp
    return dz if options.softcap is None else dz * (1 - u * u)
