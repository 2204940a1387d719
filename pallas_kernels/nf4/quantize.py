"""From dense weights to 4 bits, at load time: bitsandbytes' arithmetic, on the device."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.nf4 import quantize_triton, quantize_xla
from pallas_kernels.nf4.contract import NF4, NestedAbsmax
from pallas_kernels.nf4.tables import DYNAMIC_TABLE, NF4_TABLE, midpoints

BACKENDS: tuple[Backend, ...] = (
    quantize_triton.BACKEND,
    quantize_xla.BACKEND,
    quantize_triton.INTERPRET,
)
NESTED_BLOCK = 256


@partial(jax.jit, static_argnames=("block", "nested", "backend"))
def quantize_nf4(
    weight: Float[Array, "O I"], *, block: int = 64, nested: bool = True, backend: str = "auto"
) -> NF4:
    """Quantise one weight; the result is a stack of one layer.

    absmax_b = max |w_i| of block b;  code_i = nearest of NF4's 16 values to w_i * (1 / absmax_b),
    a tie going to the lower one. With `nested`, absmax is quantised by `double_quantize`.
    A block with a NaN or an infinity has an infinite absmax: check it with `jnp.isfinite`.

    Args:
      weight: [O, I], float32, bfloat16 or float16.
      block: Elements of a block, a power of two.
      nested: Quantise absmax too.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      The weight with a leading axis of one; it dequantises to the dtype of `weight`.

    Raises:
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2305.14314; bitsandbytes 0.50 `csrc/kernels.cu`
      `kQuantizeBlockwise` (comparisons with midpoints in float32).
    """
    problem = Problem(
        op="quantize_nf4",
        device=current_device(),
        dtype=str(weight.dtype),
        sizes={"L": 1, "C": -(-weight.size // 2), "block": block},
    )
    codes, absmax = choose(backend, BACKENDS, problem).forward(weight.reshape(-1), block)
    how = None
    if nested:
        absmax, scale, offset = double_quantize(absmax)
        table = jnp.asarray(DYNAMIC_TABLE, jnp.float32)
        how = NestedAbsmax(absmax=scale[None], table=table, offset=offset[None], block=NESTED_BLOCK)
    rows, columns = weight.shape
    return NF4(
        codes=codes[None],
        absmax=absmax[None],
        table=jnp.asarray(NF4_TABLE, jnp.float32),
        nested=how,
        matrix=(rows, columns),
        dtype=str(weight.dtype),
        block=block,
    )


def double_quantize(
    absmax: Float[Array, " N"],
) -> tuple[UInt8[Array, " N"], Float[Array, " _"], Float[Array, ""]]:
    """Quantise the absmax of a weight to 8 bits.

    x = absmax - mean(absmax);  scale = max |x| of 256 of them;  code = nearest of the dynamic
    type's 256 values to x * (1 / scale), a tie going to the even code: where the search of
    bitsandbytes' CUDA kernel ends (its CPU kernel reads the code from a table instead).

    Args:
      absmax: float32, [N].

    Returns:
      (codes [N], scales [ceil(N / 256)], the mean).
    """
    offset = jnp.mean(absmax)
    padding = -absmax.size % NESTED_BLOCK
    x = jnp.pad(absmax - offset, (0, padding)).reshape(-1, NESTED_BLOCK)
    scale = jnp.abs(x).max(axis=1)
    # An optimisation barrier, lest the reciprocal and the product become a division.
    inverse = jax.lax.optimization_barrier(1 / jnp.maximum(scale, quantize_xla.SMALLEST))
    code = _nearest_of_dynamic(x * inverse[:, None])
    return code.astype(jnp.uint8).reshape(-1)[: absmax.size], scale, offset


def _nearest_of_dynamic(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Index of the nearest of the dynamic type's values; eight halvings, each a table look-up."""
    middles = jnp.asarray(midpoints(DYNAMIC_TABLE), jnp.float32)
    code = jnp.zeros(x.shape, jnp.int32)
    for step in (128, 64, 32, 16, 8, 4, 2, 1):
        # The middle of codes c - 1 and c; a tie is the even one's.
        above = code + step
        middle = middles[above - 1]
        code = jnp.where((x > middle) | ((x == middle) & (above % 2 == 0)), above, code)
    return code
