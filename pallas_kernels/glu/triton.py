"""The gated activation as Pallas Triton kernels: flat tiles, each array read or written once."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.glu.contract import Options, Residuals
from pallas_kernels.glu.elements import gated, pull
from pallas_kernels.pallas_triton import backends, plt, refuse_dtype, whole

# Elements and warps a program: 8 elements a thread are one load of 16 bytes in a half dtype.
FORWARD_TILE, FORWARD_WARPS = 2048, 4
BACKWARD_TILE, BACKWARD_WARPS = 1024, 4


def forward(
    options: Options,
    gate: Float[Array, "..."],
    up: Float[Array, "..."],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "..."], Residuals]:
    """The gated values; see `xla.forward`."""

    def kernel(gate: jax.Array, up: jax.Array) -> tuple[jax.Array]:
        return (gated(options, dtype, gate, up),)

    dtype = gate.dtype
    shape = (FORWARD_TILE, FORWARD_WARPS)
    (y,) = _call("glu", kernel, (gate, up), shape, outputs=1, interpret=interpret)
    return y, Residuals(gate, up)


def backward(
    options: Options,
    residuals: Residuals,
    dy: Float[Array, "..."],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Gradients; see `xla.backward`."""
    shape = (BACKWARD_TILE, BACKWARD_WARPS)
    operands = (*residuals, dy)
    d_gate, d_up = _call(
        "glu_backward", partial(pull, options), operands, shape, outputs=2, interpret=interpret
    )
    return d_gate, d_up


def _call(
    name: str,
    formula: Callable[..., Sequence[jax.Array]],
    operands: Sequence[jax.Array],
    shape: tuple[int, int],
    *,
    outputs: int,
    interpret: bool,
) -> list[jax.Array]:
    """Apply a formula of elements, in float32, to arrays of one shape and dtype."""
    like = operands[0]
    tile, warps = shape
    flat = [operand.reshape(-1) for operand in operands]
    out = [jax.ShapeDtypeStruct((like.size,), like.dtype)] * outputs

    def kernel(*refs: jax.Ref) -> None:
        place = pl.program_id(0) * tile + jnp.arange(tile)
        inside = place < like.size if like.size % tile else None
        other = None if inside is None else 0.0
        values = [
            plt.load(ref.at[place], mask=inside, other=other).astype(jnp.float32)
            for ref in refs[: len(operands)]
        ]
        for ref, value in zip(refs[len(operands) :], formula(*values), strict=True):
            plt.store(ref.at[place], value.astype(ref.dtype), mask=inside)

    made = pl.pallas_call(
        kernel,
        out_shape=out,
        grid=(pl.cdiv(like.size, tile),),
        in_specs=[whole(array) for array in flat],
        out_specs=[whole(array) for array in out],
        compiler_params=plt.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name=name,
    )(*flat)
    return [array.reshape(like.shape) for array in made]


BACKEND, INTERPRET = backends(forward, refuse_dtype, backward=backward)
