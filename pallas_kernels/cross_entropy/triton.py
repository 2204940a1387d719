"""The losses of a chunk's rows, and their gradient, as a Pallas Triton kernel: a row a program.

Logits are float32, as the loss promises: rounded to bfloat16, one of 20 would be off by up to
0.06. Each then moves 10 bytes: 4 for the log-sum-exp, 4 again for dz, since a row is larger than
what a program can keep, and 2 to write dz in bfloat16 for its products. In bfloat16 and in place
it would be 6; next to the two products that is 2 to 4 % of the op.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy import chunks
from pallas_kernels.cross_entropy.approximate import Approximate
from pallas_kernels.cross_entropy.contract import IGNORED, Options, Residuals, Wanted
from pallas_kernels.cross_entropy.logits import logits, slope
from pallas_kernels.dispatch import Problem
from pallas_kernels.pallas_triton import backends, plt, whole

TILE = 8192  # columns at a time: 16 float32 a thread
WARPS = 16  # two programs a multiprocessor keep enough loads in flight
LOWEST = -1e30  # stands for no logit; -inf less itself would not be a number


def forward(
    options: Options,
    wanted: Wanted,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, " M"], Residuals]:
    """Losses and gradients; see `chunks.forward`."""
    rows = partial(row_losses, interpret=interpret)
    return chunks.forward(rows, options, wanted, x, head, labels)


def row_losses(
    options: Options,
    product: Float[Array, "M V"],
    labels: Int[Array, " M"],
    dtype: DTypeLike | None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, " M"], Float[Array, "M V"] | None]:
    """Losses and dz, which is written over `product` if the dtypes allow; see `xla.row_losses`."""
    M, V = product.shape
    tile = min(TILE, pl.next_power_of_2(V))
    out = [jax.ShapeDtypeStruct((M,), product.dtype)]
    if dtype is not None:
        out.append(jax.ShapeDtypeStruct((M, V), dtype))
    losses, *dz = pl.pallas_call(
        partial(_kernel, options, V, tile, Approximate(interpret=interpret)),
        out_shape=out,
        grid=(M,),
        in_specs=[whole(product), whole(labels)],
        out_specs=[whole(array) for array in out],
        input_output_aliases={0: 1} if dtype == product.dtype else {},
        compiler_params=plt.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="cross_entropy_rows",
    )(product, labels.astype(jnp.int32))
    return losses, dz[0] if dz else None


class _Row(NamedTuple):
    """What a program works on: row `index` of the products, [M, V]."""

    options: Options
    V: int
    tile: int
    fast: Approximate
    product_ref: jax.Ref
    index: Array
    label: Array


def _kernel(
    options: Options,
    V: int,
    tile: int,
    fast: Approximate,
    product_ref: jax.Ref,  # [M, V]
    labels_ref: jax.Ref,  # [M]
    losses_ref: jax.Ref,  # [M]
    *dz_refs: jax.Ref,  # [M, V], none without a gradient
) -> None:
    index = pl.program_id(0)
    label = labels_ref[index]
    row = _Row(options, V, tile, fast, product_ref, index, label)

    @pl.when(label != IGNORED)
    def _() -> None:
        losses_ref[index], lse = _loss(row)
        for dz_ref in dz_refs:
            _gradient(row, lse, dz_ref)

    @pl.when(label == IGNORED)
    def _() -> None:  # a row without loss is not read
        losses_ref[index] = jnp.zeros((), losses_ref.dtype)
        for dz_ref in dz_refs:
            _clear(row, dz_ref)


def _loss(row: _Row) -> tuple[Array, Array]:
    """Loss and log-sum-exp of a row, each lane with a maximum and sums of its own.

    No lane waits for another before the end. A lane's sum changes by one exponential a logit:
    of the distance between it and the maximum so far, on whichever side that is.
    """
    V, label, smoothing = row.V, row.label, row.options.label_smoothing

    def add(
        column: Array, inside: Array | None, carry: tuple[Array, Array, Array]
    ) -> tuple[Array, Array, Array]:
        largest, total, plain = carry
        z = _load(row, column, inside, LOWEST)
        ratio = row.fast.exp(-jnp.abs(z - largest))
        total = jnp.where(z > largest, total * ratio + 1, total + ratio)
        if smoothing:
            plain += z if inside is None else jnp.where(inside, z, 0)
        return jnp.maximum(largest, z), total, plain

    zeros = jnp.zeros(row.tile, jnp.float32)
    # A row's label is read first: dz may be written over the logits.
    known = (label >= 0) & (label < V)
    picked = plt.load(row.product_ref.at[row.index, jnp.where(known, label, 0)])
    picked = jnp.where(known, logits(row.options, picked), 0)
    largest, total, plain = _each_tile(row, add, (zeros + LOWEST, zeros, zeros))
    top = jnp.max(largest)
    lse = top + jnp.log(jnp.sum(total * jnp.exp(largest - top)))
    loss = lse - (1 - smoothing) * picked
    if smoothing:
        loss -= smoothing / V * jnp.sum(plain)
    return loss, lse


def _gradient(row: _Row, lse: Array, dz_ref: jax.Ref) -> None:
    smoothing = row.options.label_smoothing

    def write(column: Array, inside: Array | None, carry: None) -> None:
        z = _load(row, column, inside, 0.0)
        dz = row.fast.exp(z - lse) - jnp.where(column == row.label, 1 - smoothing, 0.0)
        if smoothing:
            dz -= smoothing / row.V
        dz = (dz * slope(row.options, z)).astype(dz_ref.dtype)
        plt.store(dz_ref.at[row.index, column], dz, mask=inside)
        return carry

    # From the end, which the first pass has just left in the cache.
    _each_tile(row, write, backwards=True)


def _clear(row: _Row, dz_ref: jax.Ref) -> None:
    def write(column: Array, inside: Array | None, carry: None) -> None:
        plt.store(dz_ref.at[row.index, column], jnp.zeros(row.tile, dz_ref.dtype), mask=inside)
        return carry

    _each_tile(row, write)


def _each_tile(
    row: _Row,
    visit: Callable[[Array, Array | None, Any], Any],
    carry: Any = None,
    *,
    backwards: bool = False,
) -> Any:
    """Visit the columns tile by tile: visit(columns, mask of those inside, carry) -> carry.

    Only the last tile is masked, and only if V is no multiple of a tile.
    """
    V, tile, full = row.V, row.tile, row.V // row.tile

    def step(n: Array, carry: Any) -> Any:
        place = full - 1 - n if backwards else n
        return visit(place * tile + jnp.arange(tile), None, carry)

    def tail(carry: Any) -> Any:
        column = full * tile + jnp.arange(tile)
        return visit(column, column < V, carry) if V % tile else carry

    if backwards:
        return lax.fori_loop(0, full, step, tail(carry))
    return tail(lax.fori_loop(0, full, step, carry))


def _load(row: _Row, column: Array, inside: Array | None, outside: float) -> Array:
    """Logits of some columns; `outside` where there is no such column."""
    place = row.product_ref.at[row.index, column]
    product = plt.load(place, mask=inside, other=None if inside is None else 0.0)
    z = logits(row.options, product, row.fast.tanh)
    return z if inside is None else jnp.where(inside, z, outside)


def refuse(problem: Problem) -> str | None:
    """Say why the kernel cannot serve a problem."""
    if problem.dtype in ("float32", "bfloat16", "float16"):
        return None
    return f"it computes in float32; the inputs are {problem.dtype}"


BACKEND, INTERPRET = (
    replace(backend, backward=chunks.backward) for backend in backends(forward, refuse)
)
