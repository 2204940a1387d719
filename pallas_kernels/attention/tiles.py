"""What the Triton kernels of attention share: tiles, scores, the mask, the walk over blocks.

Inside the kernels logits are of base 2: z * log2(e) = factor * u, where u is the product of q and
k, or the tanh of the soft-cap.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from pallas_kernels.attention.block_ranges import BlockRange, Index
from pallas_kernels.attention.block_sizes import Blocks
from pallas_kernels.attention.contract import Options
from pallas_kernels.pallas_triton import plt, whole

LOG2_E = math.log2(math.e)
NARROWEST = 16  # columns of the narrowest tile that Triton multiplies

Carry = TypeVar("Carry")


class Limits(NamedTuple):
    """What decides visibility, as arrays or as a kernel's references to them; None: no limit.

    Attributes:
      q_ids: Segment ids of the queries, [B, T].
      kv_ids: Segment ids of the keys, [B, S].
      ranges: Made by `block_ranges`, [B, blocks, 4].
      window: [1]; a static window stands in the options.
    """

    q_ids: Any
    kv_ids: Any
    ranges: Any
    window: Any

    def span(self, options: Options) -> Index | None:
        """Window in tokens, inside a kernel."""
        return options.window if self.window is None else self.window[0]


def launch(
    kernel: Callable[..., None],
    name: str,
    blocks: Blocks,
    grid: tuple[int, int, int],
    operands: tuple[Any, ...],
    results: Any,
    *,
    interpret: bool,
) -> Any:
    """Run a kernel whose references are whole arrays: those of `operands`, then of `results`."""
    return pl.pallas_call(
        kernel,
        out_shape=results,
        grid=grid,
        in_specs=jax.tree.map(whole, operands),
        out_specs=jax.tree.map(whole, results),
        compiler_params=plt.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name=name,
    )(*operands)


def padded(H: int) -> int:
    """Columns of a tile of heads of width H: a power of two."""
    return max(NARROWEST, pl.next_power_of_2(H))


def load_rows(
    ref: jax.Ref, b: Index, head: Index, start: Index, size: int, *, edge: bool
) -> Float[Array, "size H"]:
    """Positions [start, start + size) of one head of ref [B, T, N, H].

    Columns past H are 0, and so are rows past T if the block may be the last, at the `edge`.
    """
    T, H = ref.shape[1], ref.shape[3]
    rows, columns = start + jnp.arange(size)[:, None], jnp.arange(padded(H))[None, :]
    place = ref.at[b, rows, head, columns]
    mask = _mask(rows < T if edge and T % size else None, columns < H if padded(H) > H else None)
    if mask is None:
        return plt.load(place)
    return plt.load(place, mask=jnp.broadcast_to(mask, (size, padded(H))), other=0.0)


def store_rows(
    ref: jax.Ref, b: Index, head: Index, start: Index, value: Float[Array, "size H"]
) -> None:
    """Write what of `value` lies inside ref [B, T, N, H]."""
    T, H = ref.shape[1], ref.shape[3]
    size, width = value.shape
    rows, columns = start + jnp.arange(size)[:, None], jnp.arange(width)[None, :]
    mask = _mask(rows < T if T % size else None, columns < H if width > H else None)
    mask = None if mask is None else jnp.broadcast_to(mask, value.shape)
    plt.store(ref.at[b, rows, head, columns], value.astype(ref.dtype), mask=mask)


def load_line(
    ref: jax.Ref, lead: tuple[Index, ...], start: Index, size: int, *, edge: bool = True
) -> Array:
    """Positions [start, start + size) of the last axis; 0 past its end."""
    T = ref.shape[-1]
    places = start + jnp.arange(size)
    place = ref.at[(*lead, places)]
    return plt.load(place, mask=places < T, other=0) if edge and T % size else plt.load(place)


def store_line(ref: jax.Ref, lead: tuple[Index, ...], start: Index, value: Array) -> None:
    """Write what of `value` lies inside the last axis."""
    T, size = ref.shape[-1], value.shape[0]
    places = start + jnp.arange(size)
    plt.store(ref.at[(*lead, places)], value, mask=places < T if T % size else None)


def load_ids(ref: jax.Ref | None, b: Index, start: Index, size: int, axis: int) -> Array | None:
    """Segment ids of one block with a new `axis`; None without segments."""
    return None if ref is None else jnp.expand_dims(load_line(ref, (b,), start, size), axis)


def product(a: Float[Array, "m c"], b: Array, axis: int) -> Float[Array, "m n"]:
    """Contract the last axis of a with `axis` of b; float32 sums, float32 inputs never as TF32."""
    return lax.dot_general(
        a,
        b,
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def factor(options: Options) -> float:
    """Logits of base 2 per unit of `scores`."""
    return (options.scale if options.softcap is None else options.softcap) * LOG2_E


def scores(options: Options, a: Float[Array, "m H"], b: Float[Array, "n H"]) -> Array:
    """Score every pair of rows: u, their product or the tanh of the soft-cap."""
    u = product(a, b, 1)
    return u if options.softcap is None else jnp.tanh(u * (options.scale / options.softcap))


def visible(
    window: Index | None, t: Array, s: Array, q_ids: Array | None, kv_ids: Array | None
) -> Bool[Array, "m n"]:
    """Mask of one pair of blocks, its arguments shaped to broadcast.

    It needs no end of the keys: with as many queries, those past it are later than every query.
    """
    mask = s <= t
    if window is not None:
        mask &= t - s < window
    return mask if q_ids is None else mask & (q_ids == kv_ids)


def walk(blocks: BlockRange, body: Callable[[Index, Carry, bool], Carry], carry: Carry) -> Carry:
    """Run body(block, carry, edge) over a range: two loops, so that full blocks need no mask."""
    full = blocks.full_last - blocks.full_first

    def edge_block(n: Index, carry: Carry) -> Carry:
        block = blocks.first + n
        return body(jnp.where(block < blocks.full_first, block, block + full), carry, True)

    carry = lax.fori_loop(
        blocks.full_first, blocks.full_last, lambda n, carry: body(n, carry, False), carry
    )
    return lax.fori_loop(0, blocks.last - blocks.first - full, edge_block, carry)


def read_range(ref: jax.Ref, b: Index, block: Index) -> BlockRange:
    """A program's range, of those made before the kernel."""
    return BlockRange(*(ref[b, block, n] for n in range(4)))


def _mask(rows: Array | None, columns: Array | None) -> Array | None:
    if rows is None or columns is None:
        return columns if rows is None else rows
    return rows & columns
