"""The product as a Pallas Triton kernel: 4 bits an element are read, and no weight is written.

With O even, the bytes of row o hold row o of the weight in their high nibbles and row o + O / 2 in
their low ones, so a program reads one tile of codes and makes two products. As in `nf4.triton` the
operand is the whole stack.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Problem
from pallas_kernels.nf4 import NF4
from pallas_kernels.nf4.triton import load_absmax
from pallas_kernels.nf4.triton import refuse as refuse_stack
from pallas_kernels.nf4_matmul.decode import lane_values, look_up, round_to_bfloat16
from pallas_kernels.nf4_matmul.plan import MOST_ROWS, Plan, make_plan
from pallas_kernels.pallas_triton import backends, plt, whole

DTYPES = ("float32", "bfloat16", "float16")
BLOCKS = (16, 256)  # from a tensor core's tile to what shared memory holds


def forward(
    x: Float[Array, "M I"],
    weight: NF4,
    layer: Int[Array, ""],
    requested: str = "auto",
    *,
    interpret: bool = False,
) -> Float[Array, "M O"]:
    """The product; see `xla.forward`."""
    del requested
    outputs, rows = weight.matrix[0], x.shape[0]
    plan = make_plan(rows, weight.matrix, weight.block, x.dtype)
    # In the order of `_kernel`'s refs; x is flat, so that an index is one array.
    operands = [x.reshape(-1), layer.reshape(1), *jax.tree.leaves(weight)]
    out = jax.ShapeDtypeStruct(
        (plan.splits * rows * outputs,), x.dtype if plan.splits == 1 else jnp.float32
    )
    parts = pl.pallas_call(
        partial(_kernel, weight, plan, interpret),
        out_shape=out,
        grid=(pl.cdiv(outputs // 2, plan.outputs), plan.splits),
        in_specs=[whole(operand) for operand in operands],
        out_specs=whole(out),
        # One stage: Triton's own pipeline would stage the look-ups in shared memory.
        compiler_params=plt.CompilerParams(num_warps=plan.warps, num_stages=1),
        interpret=interpret,
        name="nf4_matmul",
    )(*operands)
    if plan.splits == 1:
        return parts.reshape(rows, outputs)
    return parts.reshape(plan.splits, rows, outputs).sum(axis=0).astype(x.dtype)


def _kernel(weight: NF4, plan: Plan, interpret: bool, *refs: jax.Ref) -> None:
    """Two products: a tile of rows of the weight's first half, and the same of its second."""
    x_ref, layer_ref, codes_ref, absmax_ref, table_ref, *nested_refs, out_ref = refs
    half, width = weight.matrix[0] // 2, weight.matrix[1]
    layer, row = layer_ref[0], pl.program_id(0) * plan.outputs + jnp.arange(plan.outputs)
    # Rows beyond the last are the last once more: it is read and written twice, without masks.
    row = jnp.minimum(row, half - 1)
    blocks = plan.columns // weight.block
    column = jnp.arange(blocks)[:, None] * weight.block + jnp.arange(weight.block)[None]
    steps = width // plan.columns // plan.splits
    begin = pl.program_id(1) * steps
    lanes = lane_values(table_ref, interpret)

    def add(step: Array, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        place = (begin + step) * plan.columns + column
        # [outputs, blocks, block]; not loaded a step ahead, which would unpack the bytes.
        packed = plt.load(codes_ref.at[layer, row[:, None, None] * width + place[None]])
        x = _load_x(plan, x_ref, width, (begin + step) * plan.columns, column)
        added = []
        for part, value in enumerate(look_up(packed, table_ref, lanes)):
            first = (part * half + row) * (width // weight.block) + (begin + step) * blocks
            block = first[:, None] + jnp.arange(blocks)[None]
            absmax = load_absmax(weight.nested, (absmax_ref, *nested_refs), layer, block)
            w = _rounded(value * absmax[:, :, None], weight.dtype, x_ref.dtype, plan, interpret)
            added.append(_add_product(plan, sums[part], w, x))
        return added[0], added[1]

    sums = lax.fori_loop(0, steps, add, (_zeros(plan, weight.block),) * 2)
    for part, total in enumerate(sums):
        _store(plan, out_ref, weight.matrix[0], part * half + row, total)


def _rounded(value: Array, stored: str, dtype: DTypeLike, plan: Plan, interpret: bool) -> Array:
    """A weight as it is dequantised; in float32 where arithmetic is."""
    if not plan.padded and not interpret and stored == dtype == jnp.bfloat16:
        return round_to_bfloat16(value)
    w = value.astype(stored).astype(dtype)
    return w if plan.padded else w.astype(jnp.float32)


def _zeros(plan: Plan, block: int) -> tuple[Array, ...]:
    """Sums of one half: of all rows of x as a tensor core's tile, or of each by column.

    By column, a step is one fused multiply-add an element; threads meet at the end alone.
    """
    if plan.padded:
        return (jnp.zeros((plan.outputs, plan.padded), jnp.float32),)
    shape = (plan.outputs, plan.columns // block, block)
    return (jnp.zeros(shape, jnp.float32),) * plan.rows


def _load_x(
    plan: Plan, x_ref: jax.Ref, width: int, start: Array, column: Array
) -> tuple[Array, ...]:
    """Some columns of x: [columns, padded], or each row's, [blocks, block]."""
    if not plan.padded:
        return tuple(plt.load(x_ref.at[m * width + start + column]) for m in range(plan.rows))
    m, k = jnp.arange(plan.padded)[None], start + jnp.arange(plan.columns)[:, None]
    inside = jnp.broadcast_to(m < plan.rows, (plan.columns, plan.padded))
    return (plt.load(x_ref.at[m * width + k], mask=inside, other=0),)


def _add_product(
    plan: Plan, sums: tuple[Array, ...], w: Array, x: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Add the products of some columns; w is [outputs, blocks, block]."""
    if plan.padded:
        tile, (wide,) = w.reshape(plan.outputs, plan.columns), x
        # Without the precision float32 would be rounded to TF32; 16-bit types have one alone.
        product = jnp.dot(
            tile, wide, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
        )
        return (sums[0] + product,)
    products = (w * row.astype(jnp.float32)[None] for row in x)
    return tuple(total + product for total, product in zip(sums, products, strict=True))


def _store(plan: Plan, out_ref: jax.Ref, outputs: int, row: Array, sums: tuple[Array, ...]) -> None:
    """Write the products of x with some rows of the weight, or this program's part of them."""
    start = pl.program_id(1) * (plan.rows * outputs) + row
    if plan.padded:
        m = jnp.arange(plan.padded)[None]
        index = start[:, None] + m * outputs
        inside = jnp.broadcast_to(m < plan.rows, index.shape)
        plt.store(out_ref.at[index], sums[0].astype(out_ref.dtype), mask=inside)
        return
    for m, total in enumerate(sums):
        y = jnp.sum(jnp.sum(total, axis=2), axis=1).astype(out_ref.dtype)
        plt.store(out_ref.at[start + m * outputs], y)


def refuse(problem: Problem) -> str | None:
    """Say why the kernel cannot serve a problem."""
    sizes = problem.sizes
    if not 0 < sizes["M"] <= MOST_ROWS:
        return f"x must have 1 to {MOST_ROWS} rows; got {sizes['M']}"
    if problem.dtype not in DTYPES:
        return f"x must be float32, bfloat16 or float16; got {problem.dtype}"
    if sizes["O"] % 2:
        return f"half of the weight must be whole rows; got {sizes['O']} rows"
    if sizes["I"] % sizes["block"]:
        return f"a row must be whole blocks; got rows of {sizes['I']}, blocks of {sizes['block']}"
    if not BLOCKS[0] <= sizes["block"] <= BLOCKS[1]:
        return f"a block must have {BLOCKS[0]} to {BLOCKS[1]} elements; got {sizes['block']}"
    return refuse_stack(problem)


BACKEND, INTERPRET = backends(forward, refuse)
