"""Named shapes of 4-bit stacks, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax.numpy as jnp
from jax.typing import ArrayLike

from pallas_kernels.blockwise_quant.contract import BLOCK as NESTED_BLOCK
from pallas_kernels.nf4.contract import NF4
from pallas_kernels.nf4.quantize import quantize_nf4


@dataclass(frozen=True, kw_only=True)
class Case:
    """L weights [O, I] as one stack.

    Attributes:
      nested: absmax is quantised itself.
      block: Elements of a block.
    """

    name: str
    L: int
    O: int
    I: int
    nested: bool = True
    block: int = 64

    @property
    def stored_bytes(self) -> int:
        """Bytes of one layer: 0.516 an element, nested.

        n / 2 of codes, and the blocks' absmax: 1 byte each and 4 bytes for 256 of them, or 4 bytes
        each where they are plain.
        """
        elements = self.O * self.I
        blocks = -(-elements // self.block)
        absmax = blocks + 4 * -(-blocks // NESTED_BLOCK) if self.nested else 4 * blocks
        return -(-elements // 2) + absmax

    @property
    def moved_bytes(self) -> int:
        """Bytes that one layer's dequantisation to bfloat16 must move: 2.516 an element, nested."""
        return self.stored_bytes + 2 * self.O * self.I


REAL_CASES = (
    Case(name="llama3_8b_gate", L=32, O=14336, I=4096),
    Case(name="llama3_8b_gate_plain", L=32, O=14336, I=4096, nested=False),
    Case(name="llama3_8b_q", L=32, O=4096, I=4096),
    Case(name="llama3_8b_k", L=32, O=1024, I=4096),
    Case(name="llama3_1b_gate", L=16, O=8192, I=2048),
    Case(name="gemma2_9b_gate", L=42, O=14336, I=3584),
)

ODD_CASES = (
    Case(name="one", L=1, O=1, I=1),
    Case(name="odd", L=3, O=7, I=9),
    Case(name="odd_plain", L=2, O=7, I=19, nested=False),
    Case(name="odd_halves", L=2, O=6, I=172),
    Case(name="one_tile", L=2, O=32, I=64),
    Case(name="odd_rows", L=2, O=3, I=128),
    Case(name="rows_of_172", L=2, O=256, I=172),
    Case(name="wide_blocks", L=3, O=256, I=172, block=128),
    Case(name="wide_blocks_plain", L=2, O=64, I=172, block=128, nested=False),
    Case(name="ragged_tiles", L=5, O=172, I=64),
)


def make_stack(case: Case, dtype: str, normal: Callable[[tuple[int, ...]], ArrayLike]) -> NF4:
    """Quantise the weight that `normal` draws from its shape; every layer of the stack is it."""
    weight = jnp.asarray(normal((case.O, case.I)), dtype)
    one = quantize_nf4(weight, block=case.block, nested=case.nested)
    repeat = partial(jnp.repeat, repeats=case.L, axis=0)
    nested = one.nested
    if nested is not None:
        nested = replace(nested, absmax=repeat(nested.absmax), offset=repeat(nested.offset))
    return replace(one, codes=repeat(one.codes), absmax=repeat(one.absmax), nested=nested)
