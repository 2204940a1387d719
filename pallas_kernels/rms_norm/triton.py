"""The norm as Pallas Triton kernels: each array is read or written once."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Problem
from pallas_kernels.pallas_triton import backends, plt, refuse_dtype, whole
from pallas_kernels.rms_norm.contract import Options, Residuals, Wanted
from pallas_kernels.rms_norm.rows import normalise, pull
from pallas_kernels.rms_norm.xla import weight_gradient

TILE = 2048  # elements a program: one row that is as long or longer, or several short ones
WARP = 512  # elements a warp: 16 a thread, two loads of 16 bytes in a half dtype
MOST_WARPS = 32
LONGEST = 32768  # a row's elements: longer ones would spill a program's registers


def forward(
    options: Options,
    x: Float[Array, "... D"],
    residual: Float[Array, "... D"] | None,
    weight: Float[Array, " D"],
    *,
    interpret: bool = False,
) -> tuple[tuple[Float[Array, "... D"], Float[Array, "... D"]], Residuals]:
    """Norm of the stream; see `xla.forward`."""
    D = x.shape[-1]
    operands = [a.reshape(-1, D) for a in (x, residual) if a is not None]
    row = jax.ShapeDtypeStruct(operands[0].shape, x.dtype)
    out = [jax.ShapeDtypeStruct(row.shape[:1], jnp.float32), row, row][: len(operands) + 1]
    kernel = partial(_forward, options, residual is not None)
    rstd, y, *sums = _call("rms_norm", kernel, [weight, *operands], out, interpret)
    h = sums[0].reshape(x.shape) if sums else x
    return (y.reshape(x.shape), h), Residuals(h, weight, rstd.reshape(x.shape[:-1]))


def backward(
    options: Options,
    wanted: Wanted,
    residuals: Residuals,
    dy: Float[Array, "... D"],
    dh: Float[Array, "... D"] | None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "... D"], Float[Array, " D"] | None]:
    """Gradients; see `xla.backward`. The weight's, if it is wanted, is a pass of plain JAX."""
    h, weight, rstd = residuals
    rows = [a.reshape(-1, h.shape[-1]) for a in (h, dy, dh) if a is not None]
    out = [jax.ShapeDtypeStruct(rows[0].shape, h.dtype)]
    kernel = partial(_backward, options, dh is not None)
    operands = [weight, rstd.reshape(-1), *rows]
    (dx,) = _call("rms_norm_backward", kernel, operands, out, interpret)
    return dx.reshape(h.shape), weight_gradient(options, wanted, residuals, dy)


def _call(
    name: str,
    kernel: Any,
    operands: Sequence[jax.Array],
    out: Sequence[jax.ShapeDtypeStruct],
    interpret: bool,
) -> Sequence[jax.Array]:
    """Run a kernel over the rows of its last operand, some of them a program."""
    M, D = operands[-1].shape
    rows, width = tile(D)
    return pl.pallas_call(
        partial(kernel, M, D),
        out_shape=out,
        grid=(pl.cdiv(M, rows),),
        in_specs=[whole(array) for array in operands],
        out_specs=[whole(array) for array in out],
        compiler_params=plt.CompilerParams(
            num_warps=min(max(rows * width // WARP, 1), MOST_WARPS), num_stages=1
        ),
        interpret=interpret,
        name=name,
    )(*operands)


def tile(D: int) -> tuple[int, int]:
    """Rows of a program, and their width with padding: both powers of two."""
    width = 1 << (D - 1).bit_length()
    return max(TILE // width, 1), width


class _Places:
    """Where a program finds its rows; masks only where its tile is ragged."""

    def __init__(self, M: int, D: int) -> None:
        rows, width = tile(D)
        self.row = pl.program_id(0) * rows + jnp.arange(rows)
        self.column = jnp.arange(width)
        self.held = self.row < M if M % rows else None
        self.inside = self.column < D if width != D else None
        masks = [self.held if self.held is None else self.held[:, None]]
        masks += [self.inside if self.inside is None else self.inside[None, :]]
        masks = [jnp.broadcast_to(mask, (rows, width)) for mask in masks if mask is not None]
        self.both = masks[0] & masks[-1] if masks else None

    def load(self, ref: jax.Ref) -> jax.Array:
        """Rows in float32, 0 outside."""
        at = ref.at[self.row[:, None], self.column[None, :]]
        other = None if self.both is None else 0.0
        return plt.load(at, mask=self.both, other=other).astype(jnp.float32)

    def load_weight(self, ref: jax.Ref) -> jax.Array:
        """The weight in its own dtype, 0 outside."""
        other = None if self.inside is None else 0.0
        return plt.load(ref.at[self.column], mask=self.inside, other=other)

    def store(self, ref: jax.Ref, value: jax.Array) -> None:
        """Write rows."""
        at = ref.at[self.row[:, None], self.column[None, :]]
        plt.store(at, value.astype(ref.dtype), mask=self.both)


def _forward(options: Options, adds: bool, M: int, D: int, *refs: jax.Ref) -> None:
    weight_ref, x_ref, *others = refs
    places = _Places(M, D)
    h = places.load(x_ref)
    if adds:
        residual_ref, rstd_ref, y_ref, h_ref = others
        # The norm is that of the rounded sum, which is what the stream goes on with.
        h = (h + places.load(residual_ref)).astype(h_ref.dtype)
        places.store(h_ref, h)
        h = h.astype(jnp.float32)
    else:
        rstd_ref, y_ref = others
    y, rstd = normalise(options, D, y_ref.dtype, h, places.load_weight(weight_ref))
    places.store(y_ref, y)
    plt.store(rstd_ref.at[places.row], rstd.reshape(places.row.shape), mask=places.held)


def _backward(options: Options, adds: bool, M: int, D: int, *refs: jax.Ref) -> None:
    weight_ref, rstd_ref, h_ref, dy_ref, *others = refs
    places = _Places(M, D)
    other = None if places.held is None else 0.0
    rstd = plt.load(rstd_ref.at[places.row], mask=places.held, other=other)[:, None]
    h, dy = places.load(h_ref), places.load(dy_ref)
    dx = pull(options, D, h_ref.dtype, h, places.load_weight(weight_ref), rstd, dy)
    if adds:
        dx += places.load(others[0])
    places.store(others[-1], dx)


def refuse(problem: Problem) -> str | None:
    """Say why the kernels cannot serve a problem."""
    if problem.sizes["D"] > LONGEST:
        return f"rows must have at most {LONGEST} elements; got {problem.sizes['D']}"
    return refuse_dtype(problem)


BACKEND, INTERPRET = backends(forward, refuse, backward=backward)
