"""Named shapes of the linear cross-entropy, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.cross_entropy.contract import IGNORED, Options


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape with its options; letters as in `pallas_kernels.linear_cross_entropy`.

    Attributes:
      ignored: Share of the rows without loss, 0 to 1.
      chunk_rows: Rows of a chunk; None lets the op choose.
    """

    name: str
    M: int
    D: int
    V: int
    softcap: float | None = None
    logit_scale: float = 1.0
    label_smoothing: float = 0.0
    ignored: float = 0.25
    chunk_rows: int | None = None

    @property
    def options(self) -> Options:
        """Static arguments of the op."""
        return Options(
            softcap=self.softcap,
            logit_scale=self.logit_scale,
            label_smoothing=self.label_smoothing,
            chunk_rows=self.chunk_rows,
        )


REAL_CASES = (
    Case(name="llama3_8b", M=4096, D=4096, V=128256),
    Case(name="llama3_8b_long", M=16384, D=4096, V=128256),
    Case(name="llama3_1b", M=4096, D=2048, V=128256),
    Case(name="llama3_1b_long", M=16384, D=2048, V=128256),
    Case(name="gemma2_9b", M=4096, D=3584, V=256000, softcap=30.0),
    Case(name="gemma2_9b_long", M=16384, D=3584, V=256000, softcap=30.0),
    Case(name="gemma2_2b", M=4096, D=2304, V=256000, softcap=30.0),
)

ODD_CASES = (
    Case(name="one_row", M=1, D=8, V=11, ignored=0.0),
    Case(name="prime_one_chunk", M=37, D=8, V=53),
    Case(name="prime_chunks", M=37, D=8, V=53, chunk_rows=8),
    Case(name="one_row_chunks", M=5, D=8, V=17, chunk_rows=1),
    Case(name="softcap_chunks", M=31, D=16, V=101, softcap=3.0, chunk_rows=7),
    Case(name="scale_chunks", M=19, D=8, V=48, logit_scale=0.25, chunk_rows=8),
    Case(name="smoothing_chunks", M=29, D=8, V=67, label_smoothing=0.1, chunk_rows=6),
    Case(
        name="all_options",
        M=23,
        D=16,
        V=71,
        softcap=2.0,
        logit_scale=1.5,
        label_smoothing=0.3,
        chunk_rows=9,
    ),
    Case(name="chunk_longer_than_rows", M=13, D=8, V=7, chunk_rows=64),
    Case(name="all_ignored", M=9, D=8, V=11, ignored=1.0, chunk_rows=4),
)


def make_inputs(
    case: Case, dtype: str, normal: Callable[[tuple[int, ...]], Any]
) -> tuple[Array, Array, Array]:
    """Make the arrays of a case; `normal` draws x and head, in this order, from their shapes.

    The head is scaled so that logits have a spread of about one.
    """
    x = jnp.asarray(normal((case.M, case.D)), dtype)
    head = jnp.asarray(normal((case.V, case.D)) * case.D**-0.5, dtype)
    random = Random(case.name)
    labels = [
        IGNORED if random.random() < case.ignored else random.randrange(case.V)
        for _ in range(case.M)
    ]
    return x, head, jnp.asarray(labels, jnp.int32)
