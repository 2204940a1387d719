"""The moments that callers hold, and the numbers of a step that backends read."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blockwise_quant.contract import Blockwise, zeros
from pallas_kernels.blockwise_quant.tables import single
from pallas_kernels.pytree import pytree


@pytree(data=("first", "second"), meta=())
@dataclass(frozen=True, kw_only=True)
class Moments:
    """Both moments of L tensors of N elements: 2 + 2 * 4 / 256 = 2.031 bytes an element.

    Attributes:
      first: m, in the signed type.
      second: v, in the unsigned one.
    """

    first: Blockwise
    second: Blockwise

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.first.nbytes + self.second.nbytes


def zero_moments(rows: int, size: int) -> Moments:
    """The moments before the first step, of `rows` tensors of `size` elements."""
    return Moments(first=zeros(rows, size, signed=True), second=zeros(rows, size, signed=False))


@dataclass(frozen=True, kw_only=True)
class Decays:
    """The static numbers of AdamW, rounded to float32 as bitsandbytes hands them to its kernels.

    Attributes:
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled, 1/step; 0: none.
    """

    b1: int | float
    b2: int | float
    eps: int | float
    weight_decay: int | float

    def scalars(
        self, learning_rate: Float[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        """What a step multiplies and adds: (-lr c2 / c1, c2 eps, 1 - lr wd), float32.

        c1 = 1 - b1^t, c2 = sqrt(1 - b2^t).
        """
        c1, c2 = self._correction(self.b1, step), jnp.sqrt(self._correction(self.b2, step))
        return -learning_rate * c2 / c1, c2 * self.eps, 1 - learning_rate * self.weight_decay

    @staticmethod
    def _correction(decay: int | float, step: Int[Array, ""]) -> Float[Array, ""]:
        # 1 - b^t without the cancellation, which takes five digits at first.
        if decay == 0:
            return jnp.ones((), jnp.float32)
        return -jnp.expm1(step.astype(jnp.float32) * math.log(single(decay)))
