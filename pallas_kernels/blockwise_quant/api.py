"""The public ops: argument checks and the choice of the backend."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.blockwise_quant import triton, xla
from pallas_kernels.blockwise_quant.contract import BLOCK, Blockwise
from pallas_kernels.dispatch import Backend, Problem, choose, current_device

QUANTIZE: tuple[Backend, ...] = (triton.QUANTIZE, xla.QUANTIZE, triton.QUANTIZE_INTERPRET)
DEQUANTIZE: tuple[Backend, ...] = (
    triton.DEQUANTIZE,
    xla.DEQUANTIZE,
    triton.DEQUANTIZE_INTERPRET,
)


def quantize_blockwise(
    x: Float[Array, "L N"],
    *,
    signed: bool = True,
    keeps_sign: bool = False,
    backend: str = "auto",
) -> Blockwise:
    """Values in bitsandbytes' dynamic 8 bits, as its CUDA kernel quantises them.

    absmax_b = max |x_i| of the 256 values of block b;  code_i = nearest of the type's 256 values to
    x_i * (1 / absmax_b), both roundings in float32, a tie going to the even code. A block of zeros
    has absmax 0; one with a NaN or an infinity has an infinite absmax: check it with
    `jnp.isfinite`.

    It has no gradient.

    Args:
      x: Rows that are quantised apart, [L, N], float32, bfloat16 or float16.
      signed: Which type; the unsigned one has twice the values in [0, 1], and is for x >= 0.
      keeps_sign: A negative value never becomes 0 but the code below, as in bitsandbytes' optimizer
        kernels; signed type only.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      The blocks; the last one of a row is filled up with zeros.

    Raises:
      ValueError: `keeps_sign` in the unsigned type.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2110.02861; bitsandbytes 0.50 `csrc/kernels.cu`
      `kQuantizeBlockwise` (its CPU kernel reads the code from a table of 2^16 cells instead).
    """
    if keeps_sign and not signed:
        raise ValueError("`keeps_sign` is for the signed type; got signed=False. Leave it out.")
    problem = _problem("quantize_blockwise", x.shape[0], x.shape[1], x.dtype)
    return choose(backend, QUANTIZE, problem).forward(x, signed=signed, keeps_sign=keeps_sign)


def dequantize_blockwise(
    blocks: Blockwise, size: int, dtype: DTypeLike = "float32", *, backend: str = "auto"
) -> Float[Array, "L N"]:
    """The values of 8-bit blocks, bit-equal to bitsandbytes'.

    x_i = dtype(table[code_i] * absmax_{i // 256}), the product in float32.

    It has no gradient.

    Args:
      blocks: From `quantize_blockwise`.
      size: N, the values of a row.
      dtype: Of the result.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [L, N].

    Raises:
      ValueError: The arrays do not fit each other or N.
      Unsupported: The forced backend is missing or cannot do this call.
    """
    check_blocks("blocks", blocks, blocks.codes.shape[0], size)
    problem = _problem("dequantize_blockwise", blocks.codes.shape[0], size, dtype)
    return choose(backend, DEQUANTIZE, problem).forward(blocks, size, jnp.dtype(dtype))


def check_blocks(name: str, blocks: Blockwise, rows: int, size: int) -> None:
    """Raise a ValueError unless the blocks hold so many rows of so many values."""
    count = -(-size // BLOCK)
    expected = {"codes": (rows, count, BLOCK), "absmax": (rows, count)}
    for part, shape in expected.items():
        got = getattr(blocks, part).shape
        if got != shape:
            raise ValueError(
                f"`{name}.{part}` of {rows} rows of {size} values must have shape {shape}; got "
                f"{got}."
            )


def _problem(op: str, rows: int, size: int, dtype: DTypeLike) -> Problem:
    return Problem(
        op=op, device=current_device(), dtype=str(jnp.dtype(dtype)), sizes={"L": rows, "N": size}
    )
