"""Named shapes of LoRA products, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from pallas_kernels.lora_linear.contract import Adapter, Weight
from pallas_kernels.nf4.quantize import quantize_nf4


@dataclass(frozen=True, kw_only=True)
class Case:
    """Projections of M rows of width I to the widths O, with branches of the ranks R.

    Attributes:
      four_bits: Weights are 4-bit stacks of one layer; else dense.
      dropout: A's input is not x.
    """

    name: str
    M: int
    I: int
    O: tuple[int, ...]
    R: tuple[int, ...]
    four_bits: bool = True
    dropout: bool = False


def _real(name: str, M: int, D: int, KV: int, F: int) -> tuple[Case, ...]:
    ranks = (16, 16, 16)
    return (
        Case(name=f"{name}_qkv", M=M, I=D, O=(D, KV, KV), R=ranks),
        Case(name=f"{name}_o", M=M, I=D, O=(D,), R=ranks[:1]),
        Case(name=f"{name}_gate_up", M=M, I=D, O=(F, F), R=ranks[:2]),
        Case(name=f"{name}_down", M=M, I=F, O=(D,), R=ranks[:1]),
    )


REAL_CASES = (
    *_real("llama3_8b", 4096, 4096, 1024, 14336),
    *_real("llama3_1b", 4096, 2048, 512, 8192),
    *_real("llama3_8b_long", 16384, 4096, 1024, 14336),
)

ODD_CASES = (
    Case(name="one", M=1, I=64, O=(2,), R=(1,)),
    Case(name="dense", M=37, I=24, O=(10,), R=(3,), four_bits=False),
    Case(name="dense_group", M=37, I=24, O=(10, 7), R=(3, 5), four_bits=False, dropout=True),
    Case(name="joined", M=37, I=64, O=(96, 128), R=(3, 5)),
    Case(name="joined_twice", M=37, I=192, O=(96, 128), R=(3, 5)),
    Case(name="joined_back", M=41, I=192, O=(96,), R=(20,)),
    Case(name="joined_dropout", M=39, I=64, O=(96, 2), R=(16, 1), dropout=True),
    Case(name="narrow", M=19, I=192, O=(10,), R=(4,)),
    Case(name="several_strips", M=70, I=64, O=(300,), R=(20,)),
    Case(name="high_rank", M=9, I=64, O=(66,), R=(64,)),
)


class Drawn(NamedTuple):
    """Arguments of one call; see `lora_linear`."""

    x: Float[Array, "M I"]
    dropped: Float[Array, "M I"] | None
    weights: tuple[Weight, ...]
    adapters: tuple[Adapter, ...]


def make_inputs(case: Case, dtype: str, normal: Callable[[tuple[int, ...]], ArrayLike]) -> Drawn:
    """Make the arrays of a case; A and B are float32, as they are trained."""
    x = jnp.asarray(normal((case.M, case.I)), dtype)
    weights, adapters = [], []
    for index, (out, rank) in enumerate(zip(case.O, case.R, strict=True)):
        weight = jnp.asarray(normal((out, case.I)), dtype) * jnp.asarray(case.I**-0.5, dtype)
        weights.append(quantize_nf4(weight) if case.four_bits else weight)
        a = jnp.asarray(normal((rank, case.I)), jnp.float32) * case.I**-0.5
        b = jnp.asarray(normal((out, rank)), jnp.float32)
        adapters.append(Adapter(a, b, jnp.float32(0.5 * (index + 1))))
    dropped = None
    if case.dropout:
        dropped = jnp.where(jnp.asarray(normal(x.shape)) > 0, 2 * x, 0).astype(dtype)
    return Drawn(x, dropped, tuple(weights), tuple(adapters))
