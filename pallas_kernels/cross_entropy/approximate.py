"""Functions that the row kernel takes by one instruction, where the plain ones are ten.

The kernel reads a logit in less time than plain `exp` and `tanh` need for it, so that these would
bound it. In its use they are as good: every result is a share of 1, and is off by 2e-7 of that.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.pallas_triton import instruction

LOG2_E = math.log2(math.e)


@dataclass(frozen=True, kw_only=True)
class Approximate:
    """The functions, of float32 arrays inside a kernel.

    Attributes:
      interpret: Interpreted, and so without instructions of a GPU.
    """

    interpret: bool

    def exp(self, x: Array) -> Array:
        """e^x, 0 where that is no normal number."""
        if self.interpret:
            return jnp.exp2(x * LOG2_E)
        return instruction("ex2.approx.ftz.f32", x * LOG2_E)

    def tanh(self, x: Array) -> Array:
        """1 - 2 / (e^(2 x) + 1)."""
        denominator = self.exp(2 * x) + 1
        if self.interpret:
            return 1 - 2 * (1 / denominator)
        return 1 - 2 * instruction("rcp.approx.ftz.f32", denominator)
