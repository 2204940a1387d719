"""Backend whose backward reads each dy once for dy B, dy^T p and a copy beside which q fits.

A program holds a strip of columns of dy^T p in registers while it walks down its rows, and writes
its share of dy B at every step. Both are summed over programs afterwards, in float32 and in a fixed
order.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Problem
from pallas_kernels.lora_linear import group
from pallas_kernels.lora_linear.group import Part
from pallas_kernels.pallas_triton import backends, plt, refuse_dtype, whole

COLUMNS = 256  # of a program's strip
TILE = 64  # rows of a step
ROWS = 1024  # of a program
WARPS, STAGES = 4, 4
PROGRAMS = 128  # below it, programs of half the rows
MAXIMUM_RANK = 64  # the strip's sums must stay in registers
WORTH_BYTES = 2**24  # below it the second read of dy costs less than the sums over programs


def slopes(
    dys: Sequence[Float[Array, "*B _"]],
    wide: Float[Array, "*B _"] | None,
    b: Float[Array, "O R"],
    p: Float[Array, "*B _"],
    parts: Sequence[Part],
    width: int,
    *,
    interpret: bool = False,
) -> tuple[list[Float[Array, "*B _"]], list[Float[Array, "_ _"]], Float[Array, "*B _"] | None]:
    """Every dy_j B_j and dy_j^T p_j, and with `width` a wider copy; see `group.Slopes`."""
    if not interpret and sum(dy.nbytes for dy in dys) < WORTH_BYTES:
        return group.slopes(dys, wide, b, p, parts, width)
    qs, dbs, copied = [], [], None
    if wide is not None:
        qs, dbs, _ = _strips(wide, b, p, parts, 0, interpret)
    else:
        for dy, part in zip(dys, parts, strict=True):
            alone = Part(0, part.rows, part.column, part.rank)
            some, more, copied = _strips(dy, part.of_rows(b), p, [alone], width, interpret)
            qs, dbs = qs + some, dbs + more
    qs = [q.reshape(*p.shape[:-1], -1) for q in qs]
    return qs, dbs, copied if copied is None else copied.reshape(*p.shape[:-1], -1)


def _strips(
    dy: Float[Array, "*B _"],
    b: Float[Array, "O R"],
    p: Float[Array, "*B _"],
    parts: Sequence[Part],
    width: int,
    interpret: bool,
) -> tuple[list[Float[Array, "M _"]], list[Float[Array, "_ _"]], Float[Array, "M _"] | None]:
    """Every dy_j B_j and dy_j^T p_j of dys that stand side by side, and a copy of these."""
    flat, O = dy.reshape(-1, dy.shape[-1]), b.shape[0]
    M = flat.shape[0]
    R = pl.next_power_of_2(max(16, *(part.rank for part in parts)))  # a product's smallest side
    p = p.reshape(M, -1)
    # So that R columns can be read from each part's first.
    missing = max(parts[-1].column + R - p.shape[1], 0)
    b, p = jnp.pad(b, ((0, 0), (0, R - b.shape[1]))), jnp.pad(p, ((0, 0), (0, missing)))
    operands = (flat, b, p)
    counts = [pl.cdiv(part.rows, COLUMNS) for part in parts]
    rows = _rows(M, sum(counts))
    blocks = pl.cdiv(M, rows)
    out = [
        jax.ShapeDtypeStruct((sum(counts), M, R), jnp.float32),
        jax.ShapeDtypeStruct((blocks, O, R), jnp.float32),
    ]
    if width:
        out.append(jax.ShapeDtypeStruct((M, O + width), dy.dtype))
    products, sums, *copied = pl.pallas_call(
        partial(_kernel, rows, tuple(parts)),
        out_shape=out,
        grid=(sum(counts), blocks),
        in_specs=[whole(operand) for operand in operands],
        out_specs=tuple(whole(array) for array in out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="lora_slopes",
    )(*operands)
    total, first, qs = sums.sum(0), 0, []
    for part, count in zip(parts, counts, strict=True):
        qs.append(products[first : first + count].sum(0)[:, : part.rank])
        first += count
    dbs = [part.of_rows(total)[:, : part.rank] for part in parts]
    return qs, dbs, copied[0] if copied else None


def _rows(M: int, strips: int) -> int:
    """Rows of a program: `ROWS`, or fewer where few strips would leave multiprocessors idle."""
    rows = ROWS
    while rows > TILE and strips * pl.cdiv(M, rows) < PROGRAMS:
        rows //= 2
    return rows


def _kernel(
    height: int,
    parts: tuple[Part, ...],
    dy_ref: jax.Ref,
    b_ref: jax.Ref,
    p_ref: jax.Ref,
    products_ref: jax.Ref,
    sums_ref: jax.Ref,
    *copied_refs: jax.Ref,
) -> None:
    strip, block = pl.program_id(0), pl.program_id(1)
    M, R = dy_ref.shape[0], b_ref.shape[1]
    row, column, end = _place(strip, parts)
    columns, ranks = row + jnp.arange(COLUMNS), jnp.arange(R)
    whole_strips = all(part.rows % COLUMNS == 0 for part in parts)
    column_mask = None if whole_strips else (columns < end)
    b = _load(b_ref, columns, ranks, column_mask, None)

    def step(i: Array, sums: Array) -> Array:
        rows = block * height + i * TILE + jnp.arange(TILE)
        row_mask = (rows < M) if M % height else None
        dy = _load(dy_ref, rows, columns, row_mask, column_mask)
        for copied_ref in copied_refs:
            mask = _mask(rows, columns, row_mask, column_mask)
            plt.store(copied_ref.at[rows[:, None], columns[None, :]], dy, mask=mask)
        p = _load(p_ref, rows, column + ranks, row_mask, None)
        share = _dot(dy, b)
        mask = None if row_mask is None else row_mask[:, None]
        place = products_ref.at[strip, rows[:, None], ranks[None, :]]
        plt.store(place, share, mask=mask)
        return sums + _dot(dy.T, p)

    start = jnp.zeros((COLUMNS, R), jnp.float32)
    sums = jax.lax.fori_loop(0, height // TILE, step, start)
    mask = None if column_mask is None else column_mask[:, None]
    plt.store(sums_ref.at[block, columns[:, None], ranks[None, :]], sums, mask=mask)


def _place(strip: Array, parts: tuple[Part, ...]) -> tuple[Array, Array, Array]:
    """A strip's first column of dy, its projection's first column of p, and where that ends."""
    place, first, before = [strip * COLUMNS, jnp.int32(0), jnp.int32(0)], 0, (0, 0, 0)
    for part in parts:
        here = (part.row - first * COLUMNS, part.column, part.row + part.rows)
        reached = jnp.where(strip >= first, jnp.int32(1), jnp.int32(0)) if first else jnp.int32(1)
        place = [
            one + reached * (new - old) for one, new, old in zip(place, here, before, strict=True)
        ]
        first, before = first + pl.cdiv(part.rows, COLUMNS), here
    return place[0], place[1], place[2]


def _load(
    ref: jax.Ref, rows: Array, columns: Array, row_mask: Array | None, column_mask: Array | None
) -> Array:
    """A tile; 0 where a mask, if there is one, says so."""
    mask = _mask(rows, columns, row_mask, column_mask)
    place = ref.at[rows[:, None], columns[None, :]]
    return plt.load(place) if mask is None else plt.load(place, mask=mask, other=0.0)


def _mask(
    rows: Array, columns: Array, row_mask: Array | None, column_mask: Array | None
) -> Array | None:
    """Both masks of a tile; None: neither."""
    if row_mask is None and column_mask is None:
        return None
    mask = jnp.ones((rows.size, columns.size), bool)
    mask = mask if row_mask is None else mask & row_mask[:, None]
    return mask if column_mask is None else mask & column_mask[None, :]


def _dot(x: Array, y: Array) -> Array:
    """The product in float32; of float32 operands too, which would be rounded otherwise."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, y, preferred_element_type=jnp.float32, precision=precision)


def refuse(problem: Problem) -> str | None:
    """Say why the kernel cannot serve a problem."""
    rank = problem.sizes["R"]
    if rank > MAXIMUM_RANK:
        return f"ranks must be {MAXIMUM_RANK} at most; got {rank}"
    return refuse_dtype(problem)


def _backward(*arguments: Any, interpret: bool = False) -> Any:
    return group.backward(partial(slopes, interpret=interpret), *arguments)


def _forward(*arguments: Any, interpret: bool = False) -> Any:
    del interpret  # no kernel of its own
    return group.forward(*arguments)


BACKEND, INTERPRET = backends(_forward, refuse, backward=_backward)
