"""Blockwise attention in plain JAX: the production path wherever no kernel serves.

Query blocks x key blocks with an online softmax; blocks that causality or the window hides are
never visited. Inside, heads stand before positions, [B, K, G, T, H] and [B, K, S, H], so each
product is one batched matrix product and k, v are never repeated for the group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.contract import Inputs, Options, Residuals
from pallas_kernels.dispatch import Backend, serves_all

MASKED = -1e30  # finite: MASKED - MASKED is 0, never NaN
BLOCK = 512  # positions; scores of one head take BLOCK * BLOCK * 4 bytes = 1 MiB

Carry = TypeVar("Carry")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cut of one axis into `count` blocks of `size` positions; the last may be padding in part."""

    length: int
    size: int

    @property
    def count(self) -> int:
        """Number of blocks."""
        return -(-self.length // self.size)

    def pad(self, x: Array, axis: int) -> Array:
        """Fill `x` with zeros along `axis` up to whole blocks."""
        extra = self.count * self.size - self.length
        if extra == 0:
            return x
        return jnp.pad(x, [(0, extra if a == axis else 0) for a in range(x.ndim)])

    def take(self, x: Array, block: int | Array, axis: int) -> Array:
        """Slice one block of a padded array."""
        return lax.dynamic_slice_in_dim(x, block * self.size, self.size, axis)


def grids(T: int, S: int, block_q: int | None, block_k: int | None) -> tuple[Grid, Grid]:
    """Cut the query and the key axis; None chooses the size of a block from T and S.

    A short query axis (decoding) gets longer key blocks of the same area, so that one position
    against a whole cache is a single block without a loop.
    """
    q = Grid(length=T, size=_even(T, BLOCK) if block_q is None else min(T, block_q))
    area = BLOCK * BLOCK // q.size
    return q, Grid(length=S, size=_even(S, area) if block_k is None else min(S, block_k))


def forward(
    options: Options, inputs: Inputs, *, block_q: int | None = None, block_k: int | None = None
) -> tuple[Float[Array, "B T N H"], Residuals]:
    """Attend block by block.

    Args:
      options: Static arguments.
      inputs: Array arguments.
      block_q: Positions in a query block; None chooses.
      block_k: Positions in a key block; None chooses.

    Returns:
      y in q's dtype, and the residuals of the backward (lse float32, `MASKED` where a query
      sees no key).
    """
    B, T, N, H = inputs.q.shape
    S, K = inputs.k.shape[1:3]
    grid_q, grid_k = grids(T, S, block_q, block_k)
    wide = jnp.promote_types(inputs.q.dtype, jnp.float32)
    q, k, v = _heads_first(inputs, grid_q, grid_k)
    statistic = (B, K, N // K, grid_q.size)

    def query_block(i: int | Array) -> tuple[Array, Array]:
        q_i = grid_q.take(q, i, 3)

        def key_block(
            j: int | Array, carry: tuple[Array, Array, Array]
        ) -> tuple[Array, Array, Array]:
            m, total, acc = carry
            mask = _visible(options, inputs, grid_q, grid_k, i, j)
            z = jnp.where(mask, _scores(options, q_i, grid_k.take(k, j, 2)), MASKED)
            m_next = jnp.maximum(m, z.max(-1))
            p = jnp.where(mask, jnp.exp(z - m_next[..., None]), 0)
            shrink = jnp.exp(m - m_next)
            pv = _product("BKGTS,BKSH->BKGTH", p.astype(v.dtype), grid_k.take(v, j, 2))
            return m_next, total * shrink + p.sum(-1), acc * shrink[..., None] + pv

        start = (
            jnp.full(statistic, MASKED, wide),
            jnp.zeros(statistic, wide),
            jnp.zeros((*statistic, H), wide),
        )
        first, last = _key_range(options, inputs, grid_q, grid_k, i)
        m, total, acc = _loop(first, last, grid_k, key_block, start)
        seen = jnp.where(total == 0, 1, total)
        lse = jnp.where(total == 0, MASKED, m + jnp.log(seen))
        return (acc / seen[..., None]).astype(inputs.q.dtype), lse

    if grid_q.count == 1:
        o, lse = query_block(0)
    else:
        o, lse = lax.map(query_block, jnp.arange(grid_q.count))
        o, lse = _join(o, 3), _join(lse, 3)
    y = o[:, :, :, :T].transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return y, Residuals(inputs, y, lse[..., :T].reshape(B, N, T))


def backward(
    options: Options,
    residuals: Residuals,
    dy: Float[Array, "B T N H"],
    *,
    block_q: int | None = None,
    block_k: int | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Gradients of q, k and v; the scores are made again, block by block.

    p = exp(z - lse);  dz = p * (dy v^T - sum_H dy * o) * (1 - (z / softcap)^2)
    dq = scale * dz k;  dk = scale * dz^T q;  dv = p^T dy

    p and dz are float32 and cast to the inputs' dtype for their products; sums are float32.
    """
    inputs = residuals.inputs
    B, T, N, H = inputs.q.shape
    S, K = inputs.k.shape[1:3]
    grid_q, grid_k = grids(T, S, block_q, block_k)
    wide = jnp.promote_types(inputs.q.dtype, jnp.float32)
    q, k, v = _heads_first(inputs, grid_q, grid_k)
    do = grid_q.pad(_grouped(dy, K), 3)
    delta = (dy.astype(wide) * residuals.o.astype(wide)).sum(-1)  # [B, T, N]
    delta = grid_q.pad(delta.transpose(0, 2, 1).reshape(B, K, N // K, T), 3)
    lse = grid_q.pad(residuals.lse.reshape(B, K, N // K, T), 3)

    def key_block(dq: Array, j: int | Array) -> tuple[Array, tuple[Array, Array]]:
        k_j, v_j = grid_k.take(k, j, 2), grid_k.take(v, j, 2)

        def query_block(
            i: int | Array, carry: tuple[Array, Array, Array]
        ) -> tuple[Array, Array, Array]:
            dq, dk_j, dv_j = carry
            rows = tuple(grid_q.take(x, i, 3) for x in (q, do, lse, delta))
            mask = _visible(options, inputs, grid_q, grid_k, i, j)
            dq_ij, dk_ij, dv_ij = _pair_gradients(options, mask, rows, k_j, v_j)
            dq_i = grid_q.take(dq, i, 3) + dq_ij
            dq = lax.dynamic_update_slice_in_dim(dq, dq_i, i * grid_q.size, 3)
            return dq, dk_j + dk_ij, dv_j + dv_ij

        first, last = _query_range(options, inputs, grid_q, grid_k, j)
        start = (dq, jnp.zeros(k_j.shape, wide), jnp.zeros(v_j.shape, wide))
        dq, dk_j, dv_j = _loop(first, last, grid_q, query_block, start)
        return dq, ((options.scale * dk_j).astype(k.dtype), dv_j.astype(v.dtype))

    dq = jnp.zeros(q.shape, wide)
    if grid_k.count == 1:
        dq, (dk, dv) = key_block(dq, 0)
    else:
        dq, (dk, dv) = lax.scan(key_block, dq, jnp.arange(grid_k.count))
        dk, dv = _join(dk, 2), _join(dv, 2)
    dq = (options.scale * dq[:, :, :, :T]).astype(q.dtype)
    dq = dq.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return dq, dk[:, :, :S].transpose(0, 2, 1, 3), dv[:, :, :S].transpose(0, 2, 1, 3)


def _pair_gradients(
    options: Options,
    mask: Bool[Array, "b 1 1 T S"],
    rows: tuple[Array, ...],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
) -> tuple[Array, Array, Array]:
    """What one pair of blocks adds to dq / scale, dk / scale and dv."""
    q, do, lse, delta = rows  # [B, K, G, T, H] twice, [B, K, G, T] twice
    z = _scores(options, q, k)
    p = jnp.where(mask, jnp.exp(z - lse[..., None]), 0)
    dz = p * (_product("BKGTH,BKSH->BKGTS", do, v) - delta[..., None])
    if options.softcap is not None:
        dz *= 1 - (z / options.softcap) ** 2
    dz, p = dz.astype(q.dtype), p.astype(v.dtype)
    dq = _product("BKGTS,BKSH->BKGTH", dz, k)
    return dq, _product("BKGTS,BKGTH->BKSH", dz, q), _product("BKGTS,BKGTH->BKSH", p, do)


def _even(length: int, limit: int) -> int:
    """Size of a block: the whole axis if it fits, else equal parts rounded up to 16 positions."""
    count = -(-length // limit)
    if count == 1:
        return length
    return min(limit, -(-length // (count * 16)) * 16)


def _grouped(x: Float[Array, "B T N H"], K: int) -> Float[Array, "B K G T H"]:
    """Split the heads into groups and move them before the positions."""
    B, T, N, H = x.shape
    return x.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _heads_first(inputs: Inputs, grid_q: Grid, grid_k: Grid) -> tuple[Array, Array, Array]:
    """Lay out and pad: q [B, K, G, T, H]; k and v [B, K, S, H]."""
    q = grid_q.pad(_grouped(inputs.q, inputs.k.shape[2]), 3)
    k = grid_k.pad(inputs.k.transpose(0, 2, 1, 3), 2)
    return q, k, grid_k.pad(inputs.v.transpose(0, 2, 1, 3), 2)


def _join(blocks: Array, axis: int) -> Array:
    """Merge the leading axis of blocks into `axis` of what one block holds."""
    x = jnp.moveaxis(blocks, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _product(letters: str, a: Array, b: Array) -> Array:
    """Batched matrix product accumulated in float32 or wider."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(letters, a, b, preferred_element_type=wide)


def _scores(
    options: Options, q: Float[Array, "B K G T H"], k: Float[Array, "B K S H"]
) -> Float[Array, "B K G T S"]:
    """Scaled and soft-capped scores of one pair of blocks."""
    z = options.scale * _product("BKGTH,BKSH->BKGTS", q, k)
    return z if options.softcap is None else options.softcap * jnp.tanh(z / options.softcap)


def _visible(
    options: Options, inputs: Inputs, grid_q: Grid, grid_k: Grid, i: int | Array, j: int | Array
) -> Bool[Array, "b 1 1 T S"]:
    """Mask of one pair of blocks; b is 1 without segment ids. Padded keys are hidden."""
    t = (i * grid_q.size + jnp.arange(grid_q.size) + inputs.q_offset)[:, None]
    s = (j * grid_k.size + jnp.arange(grid_k.size))[None, :]
    mask = (s <= t) & (s < grid_k.length)
    window = inputs.span(options)
    if window is not None:
        mask &= t - s < window
    mask = mask[None, None, None]
    if inputs.q_segment_ids is not None and inputs.kv_segment_ids is not None:
        ids_q = grid_q.take(grid_q.pad(inputs.q_segment_ids, 1), i, 1)
        ids_k = grid_k.take(grid_k.pad(inputs.kv_segment_ids, 1), j, 1)
        mask &= (ids_q[:, :, None] == ids_k[:, None, :])[:, None, None]
    return mask


def _key_range(
    options: Options, inputs: Inputs, grid_q: Grid, grid_k: Grid, i: int | Array
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Key blocks [first, last) of which query block `i` may see something."""
    t = i * grid_q.size + inputs.q_offset  # key index of the block's first query
    last = (t + grid_q.size - 1) // grid_k.size + 1
    window = inputs.span(options)
    first = jnp.zeros_like(last) if window is None else (t - window + 1) // grid_k.size
    return jnp.maximum(first, 0), jnp.clip(last, 0, grid_k.count)


def _query_range(
    options: Options, inputs: Inputs, grid_q: Grid, grid_k: Grid, j: int | Array
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Query blocks [first, last) that may see something of key block `j`."""
    s = j * grid_k.size - inputs.q_offset  # query index that stands at the block's first key
    first = jnp.maximum(s // grid_q.size, 0)
    window = inputs.span(options)
    if window is None:
        return first, jnp.full_like(first, grid_q.count)
    last = (s + grid_k.size - 1 + window - 1) // grid_q.size + 1
    return first, jnp.clip(last, 0, grid_q.count)


def _loop(
    first: Array, last: Array, grid: Grid, body: Callable[[int | Array, Carry], Carry], start: Carry
) -> Carry:
    """Run `body` over blocks [first, last); a single block needs no loop, its mask is enough."""
    return body(0, start) if grid.count == 1 else lax.fori_loop(first, last, body, start)


def with_blocks(block_q: int | None, block_k: int | None) -> Backend:
    """Make the backend with forced block sizes in positions; None chooses."""
    return Backend(
        name="xla",
        refuse=serves_all,
        forward=partial(forward, block_q=block_q, block_k=block_k),
        backward=partial(backward, block_q=block_q, block_k=block_k),
    )


BACKEND = with_blocks(None, None)
