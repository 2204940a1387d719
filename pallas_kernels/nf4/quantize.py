"""From dense weights to 4 bits, at load time: bitsandbytes' arithmetic, on the device."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from pallas_kernels.blockwise_quant import quantize_blockwise
from pallas_kernels.blockwise_quant.contract import BLOCK
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLE
from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.nf4 import quantize_triton, quantize_xla
from pallas_kernels.nf4.contract import NF4, NestedAbsmax
from pallas_kernels.nf4.tables import NF4_TABLE

BACKENDS: tuple[Backend, ...] = (
    quantize_triton.BACKEND,
    quantize_xla.BACKEND,
    quantize_triton.INTERPRET,
)


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
        absmax, scale, offset = double_quantize(absmax, backend=backend)
        table = jnp.asarray(DYNAMIC_TABLE, jnp.float32)
        how = NestedAbsmax(absmax=scale[None], table=table, offset=offset[None], block=BLOCK)
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


@partial(jax.jit, static_argnames="backend")
def double_quantize(
    absmax: Float[Array, " N"], *, backend: str = "auto"
) -> tuple[UInt8[Array, " N"], Float[Array, " _"], Float[Array, ""]]:
    """Quantise the absmax of a weight to 8 bits.

    (codes, scales) = `quantize_blockwise` of absmax - mean(absmax), in the signed type.

    Args:
      absmax: float32, [N].
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      (codes [N], scales [ceil(N / 256)], the mean).

    Raises:
      Unsupported: The forced backend is missing or cannot do this call.
    """
    offset = jnp.mean(absmax)
    blocks = quantize_blockwise((absmax - offset)[None], signed=True, backend=backend)
    return blocks.codes.reshape(-1)[: absmax.size], blocks.absmax[0], offset
