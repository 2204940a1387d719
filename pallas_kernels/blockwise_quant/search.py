"""The code of a value: arithmetic that leaves two candidates, and one look at their middle."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blockwise_quant.tables import LINES, ZERO_CODES


def nearest(
    x: Float[Array, "..."],
    middle_of: Callable[[Int[Array, "..."]], Float[Array, "..."]],
    *,
    signed: bool,
) -> Int[Array, "..."]:
    """Index of the nearest value of the dynamic type, the even one of two equally near.

    That is where the search of bitsandbytes' CUDA kernels ends, which takes eight look-ups one
    after the other: its last pivot is even, and it leaves it only for what is nearer. The place
    computed here is wrong by at most a quarter of a cell (see `lines`), and half a cell would do.

    Args:
      x: In [-1, 1], or [0, 1].
      middle_of: Looks up the middle of the values c and c + 1.
      signed: Which of the two types.

    Returns:
      The codes.
    """
    magnitude = jnp.abs(x) if signed else x
    found = [magnitude * slope + intercept for slope, intercept in LINES[signed]]
    rank = functools.reduce(jnp.minimum, found).astype(jnp.int32)  # positive: cast is floor
    zero = ZERO_CODES[signed]
    low = jnp.where(x < 0, zero - 1 - rank, zero + rank) if signed else rank
    low = jnp.clip(low, 0, 254)
    middle = middle_of(low)
    above = (x > middle) | ((x == middle) & (low % 2 == 1))
    return low + above.astype(jnp.int32)


def keep_sign(code: Int[Array, "..."], x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Codes of the signed type in which no negative value became 0, but the one below 0.

    bitsandbytes' optimizers do so with first moments. A positive value may become 0 there.
    """
    zero = ZERO_CODES[True]
    return jnp.where((x < 0) & (code == zero), zero - 1, code)
