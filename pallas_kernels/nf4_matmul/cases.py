"""Named shapes of products with 4-bit weights, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.nf4 import NF4
from pallas_kernels.nf4.cases import Case as Stack
from pallas_kernels.nf4.cases import make_stack


@dataclass(frozen=True, kw_only=True)
class Case:
    """M rows by one layer of a stack."""

    stack: Stack
    M: int

    @property
    def name(self) -> str:
        """That of the stack, and the rows."""
        return f"{self.stack.name}_{self.M}"

    @property
    def moved_bytes(self) -> int:
        """Bytes that the product must move: the layer, and x and y in bfloat16."""
        return self.stack.stored_bytes + 2 * self.M * (self.stack.I + self.stack.O)


REAL_STACKS = (
    Stack(name="llama3_1b_q", L=16, O=2048, I=2048),
    Stack(name="llama3_1b_k", L=16, O=512, I=2048),
    Stack(name="llama3_1b_gate", L=16, O=8192, I=2048),
    Stack(name="llama3_1b_down", L=16, O=2048, I=8192),
    Stack(name="llama3_8b_q", L=32, O=4096, I=4096),
    Stack(name="llama3_8b_k", L=32, O=1024, I=4096),
    Stack(name="llama3_8b_gate", L=32, O=14336, I=4096),
    Stack(name="llama3_8b_gate_plain", L=32, O=14336, I=4096, nested=False),
    Stack(name="llama3_8b_down", L=32, O=4096, I=14336),
    Stack(name="gemma2_9b_gate", L=42, O=14336, I=3584),
)
REAL_CASES = tuple(Case(stack=stack, M=rows) for stack in REAL_STACKS for rows in (1, 8, 32))

ODD_STACKS = (
    Stack(name="one_block", L=1, O=2, I=64),
    Stack(name="odd_half", L=3, O=6, I=192),
    Stack(name="odd_half_plain", L=2, O=74, I=320, nested=False),
    Stack(name="many_tiles", L=2, O=128, I=2304),
    Stack(name="wide_blocks", L=2, O=50, I=512, block=256),
)
ODD_CASES = (
    Case(stack=ODD_STACKS[0], M=1),
    Case(stack=ODD_STACKS[0], M=17),
    Case(stack=ODD_STACKS[1], M=3),
    Case(stack=ODD_STACKS[1], M=32),
    Case(stack=ODD_STACKS[2], M=1),
    Case(stack=ODD_STACKS[2], M=9),
    Case(stack=ODD_STACKS[3], M=1),
    Case(stack=ODD_STACKS[3], M=8),
    Case(stack=ODD_STACKS[4], M=4),
    Case(stack=ODD_STACKS[4], M=31),
)


def make_inputs(
    case: Case, dtype: str, normal: Callable[[tuple[int, ...]], Any]
) -> tuple[Float[Array, "M I"], NF4]:
    """Make x and the stack of a case; `normal` draws them from their shapes, x first."""
    x = jnp.asarray(normal((case.M, case.stack.I)), dtype)
    return x, make_stack(case.stack, dtype, normal)
