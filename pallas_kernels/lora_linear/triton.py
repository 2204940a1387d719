"""Backend whose backward reads each dy once for dy B and dy^T p; plain JAX reads it twice.

A program holds a strip of columns of dy^T p in registers while it walks down its rows, and writes
its share of dy B at every step. Both are summed over programs afterwards, in float32 and in a fixed
order.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Problem
from pallas_kernels.lora_linear import group
from pallas_kernels.pallas_triton import backends, plt, refuse_dtype, whole

COLUMNS = 256  # of a program's strip
TILE = 64  # rows of a step
ROWS = 1024  # of a program
WARPS, STAGES = 4, 3
MAXIMUM_RANK = 64  # the strip's sums must stay in registers
WORTH_BYTES = 2**24  # below it the second read of dy costs less than the sums over programs


def slopes(
    dy: Float[Array, "*B O"],
    b: Float[Array, "O R"],
    p: Float[Array, "*B R"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "*B R"], Float[Array, "O R"]]:
    """The product dy B, and dy^T p; see `group.slopes`."""
    if not interpret and dy.size * dy.dtype.itemsize < WORTH_BYTES:
        return group.slopes(dy, b, p)
    flat, rank = dy.reshape(-1, dy.shape[-1]), b.shape[1]
    M, O = flat.shape
    R = pl.next_power_of_2(max(rank, 16))  # a product's smallest side
    strips, blocks = pl.cdiv(O, COLUMNS), pl.cdiv(M, ROWS)
    room = ((0, 0), (0, R - rank))
    operands = (flat, jnp.pad(b, room), jnp.pad(p.reshape(M, rank), room))
    out = (
        jax.ShapeDtypeStruct((strips, M, R), jnp.float32),
        jax.ShapeDtypeStruct((blocks, O, R), jnp.float32),
    )
    products, sums = pl.pallas_call(
        partial(_kernel, M, O, R),
        out_shape=out,
        grid=(strips, blocks),
        in_specs=[whole(operand) for operand in operands],
        out_specs=tuple(whole(array) for array in out),
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name="lora_slopes",
    )(*operands)
    return products.sum(0)[:, :rank].reshape(p.shape), sums.sum(0)[:, :rank]


def _kernel(
    M: int,
    O: int,
    R: int,
    dy_ref: jax.Ref,
    b_ref: jax.Ref,
    p_ref: jax.Ref,
    products_ref: jax.Ref,
    sums_ref: jax.Ref,
) -> None:
    strip, block = pl.program_id(0), pl.program_id(1)
    columns, ranks = strip * COLUMNS + jnp.arange(COLUMNS), jnp.arange(R)
    column_mask = (columns < O) if O % COLUMNS else None
    b = _load(b_ref, columns, ranks, column_mask, None)

    def step(i: Array, sums: Array) -> Array:
        rows = block * ROWS + i * TILE + jnp.arange(TILE)
        row_mask = (rows < M) if M % ROWS else None
        dy = _load(dy_ref, rows, columns, row_mask, column_mask)
        p = _load(p_ref, rows, ranks, row_mask, None)
        share = _dot(dy, b)
        mask = None if row_mask is None else row_mask[:, None]
        plt.store(products_ref.at[strip, rows[:, None], ranks[None, :]], share, mask=mask)
        return sums + _dot(dy.T, p)

    start = jnp.zeros((COLUMNS, R), jnp.float32)
    sums = jax.lax.fori_loop(0, ROWS // TILE, step, start)
    mask = None if column_mask is None else column_mask[:, None]
    plt.store(sums_ref.at[block, columns[:, None], ranks[None, :]], sums, mask=mask)


def _load(
    ref: jax.Ref, rows: Array, columns: Array, row_mask: Array | None, column_mask: Array | None
) -> Array:
    """A tile; 0 where a mask, if there is one, says so."""
    place = ref.at[rows[:, None], columns[None, :]]
    if row_mask is None and column_mask is None:
        return plt.load(place)
    mask = jnp.ones((rows.size, columns.size), bool)
    mask = mask if row_mask is None else mask & row_mask[:, None]
    mask = mask if column_mask is None else mask & column_mask[None, :]
    return plt.load(place, mask=mask, other=0.0)


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
