"""Which blocks a program of the Triton kernels visits.

A program owns a block of one axis, `outer`, and walks over blocks of the other, `inner`. Blocks
[first, last) may hold a visible pair; of these, in [full_first, full_last) every pair is visible,
so that no mask is needed. Without segments the program finds its range itself; with them the
ranges are made before the kernel.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Integer

Index = int | Int[Array, "*n"]


class BlockRange(NamedTuple):
    """Inner blocks of one program, or of all with arrays; empty where `last` <= `first`."""

    first: Index
    full_first: Index
    full_last: Index
    last: Index


def key_range(t: Index, block_q: int, block_k: int, S: int, window: Index | None) -> BlockRange:
    """Key blocks that the query block at position `t` may see, by causality and the window."""
    after = t + block_q  # the position after the block's last
    last = jnp.minimum(_ceil(after, block_k), _ceil(S, block_k))
    full_last = jnp.minimum(t + 1, S) // block_k
    if window is None:
        return BlockRange(0, 0, full_last, last)
    first = jnp.maximum(t - window + 1, 0) // block_k
    full_first = _ceil(jnp.maximum(after - window, 0), block_k)
    return BlockRange(first, jnp.minimum(full_first, full_last), full_last, last)


def query_range(s: Index, block_q: int, block_k: int, T: int, window: Index | None) -> BlockRange:
    """Query blocks that may see the key block at position `s`, by causality and the window.

    A block that reaches past T is never full: its loads need a mask.
    """
    last = _ceil(T, block_q)
    full_last = T // block_q
    if window is not None:
        window = jnp.minimum(window, T)  # no overflow below
        last = jnp.minimum((s + block_k - 2 + window) // block_q + 1, last)
        full_last = jnp.minimum((s + window) // block_q, full_last)
    full_first = jnp.minimum(_ceil(s + block_k - 1, block_q), full_last)
    return BlockRange(s // block_q, full_first, full_last, last)


def key_ranges(
    q_ids: Int[Array, "B T"],
    kv_ids: Int[Array, "B S"],
    block_q: int,
    block_k: int,
    window: Index | None,
) -> Int[Array, "B blocks 4"]:
    """`key_range` of every query block, narrowed to the keys whose segments it can hold."""
    queries, keys = _limits(q_ids, q_ids, block_q), _limits(kv_ids, q_ids, block_k)
    starts = jnp.arange(_ceil(q_ids.shape[1], block_q)) * block_q
    allowed = key_range(starts, block_q, block_k, kv_ids.shape[1], window)
    return _narrow(allowed, queries, keys)


def query_ranges(
    q_ids: Int[Array, "B T"],
    kv_ids: Int[Array, "B S"],
    block_q: int,
    block_k: int,
    window: Index | None,
) -> Int[Array, "B blocks 4"]:
    """`query_range` of every key block, narrowed to the queries whose segments it can hold."""
    queries, keys = _limits(q_ids, q_ids, block_q), _limits(kv_ids, q_ids, block_k)
    starts = jnp.arange(_ceil(kv_ids.shape[1], block_k)) * block_k
    allowed = query_range(starts, block_q, block_k, q_ids.shape[1], window)
    return _narrow(allowed, keys, queries)


def _ceil(n: Index, size: int) -> Index:
    return (n + size - 1) // size


def _limits(
    ids: Int[Array, "B T"], origin: Int[Array, "B U"], size: int
) -> tuple[Integer[Array, "B blocks"], Integer[Array, "B blocks"]]:
    """Smallest and largest label of every block.

    A label is the distance, modulo 2^bits, from the row's first id: equal for equal ids alone, and
    ascending along a packed row even where it ends in padding of id 0 or -1.
    """
    unsigned = jnp.uint64 if ids.dtype.itemsize > 4 else jnp.uint32
    labels = ids.astype(unsigned) - origin[:, :1].astype(unsigned)
    count = _ceil(ids.shape[1], size)
    labels = jnp.pad(labels, ((0, 0), (0, count * size - ids.shape[1])), mode="edge")
    blocks = labels.reshape(-1, count, size)
    return blocks.min(-1), blocks.max(-1)


def _narrow(
    allowed: BlockRange,
    outer: tuple[Integer[Array, "B outer"], Integer[Array, "B outer"]],
    inner: tuple[Integer[Array, "B inner"], Integer[Array, "B inner"]],
) -> Int[Array, "B outer 4"]:
    """Ranges of the blocks that `allowed` holds and whose labels overlap."""
    (low, high), (low_inner, high_inner) = (tuple(x[..., None] for x in outer), inner)
    low_inner, high_inner = low_inner[:, None], high_inner[:, None]
    n = jnp.arange(inner[0].shape[1], dtype=jnp.int32)
    first, full_first, full_last, last = (jnp.asarray(x)[..., None] for x in allowed)
    seen = (first <= n) & (n < last) & (low <= high_inner) & (low_inner <= high)
    full = (full_first <= n) & (n < full_last)
    full = full & (low == high) & (low == low_inner) & (low == high_inner)  # [B, outer, inner]
    ranges = BlockRange(
        first=jnp.where(seen, n, n.size).min(-1),
        # Of several runs of full blocks the last counts; the others are walked with a mask.
        full_first=_after(~full & (n < _after(full)[..., None])),
        full_last=_after(full),
        last=_after(seen),
    )
    return jnp.stack(ranges, -1)


def _after(chosen: Array) -> Int[Array, "B outer"]:
    """Index after the last chosen block; 0 if there is none."""
    n = jnp.arange(1, chosen.shape[-1] + 1, dtype=jnp.int32)
    return jnp.where(chosen, n, 0).max(-1)
