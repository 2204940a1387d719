"""Named shapes of attention, read by the tests and the benchmark."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import ArrayLike

from pallas_kernels.attention.contract import Inputs, Options


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape with its options; letters as in `pallas_kernels.attention`.

    Attributes:
      document: Length in tokens of every packed document; None for one document a row.
      q_offset: Index of the first query on the key axis, in tokens.
    """

    name: str
    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    window: int | None = None
    softcap: float | None = None
    document: int | None = None
    q_offset: int = 0

    @property
    def options(self) -> Options:
        """Static arguments of the op."""
        return Options(scale=self.H**-0.5, window=self.window, softcap=self.softcap)


REAL_CASES = (
    Case(name="llama3_8b", B=2, T=2048, S=2048, N=32, K=8, H=128),
    Case(name="llama3_8b_long", B=1, T=8192, S=8192, N=32, K=8, H=128),
    Case(name="llama3_8b_packed_2048", B=2, T=2048, S=2048, N=32, K=8, H=128, document=256),
    Case(name="llama3_8b_packed_8192", B=1, T=8192, S=8192, N=32, K=8, H=128, document=1024),
    Case(name="llama3_8b_packed", B=1, T=4096, S=4096, N=32, K=8, H=128, document=512),
    Case(name="gemma2_2b", B=2, T=2048, S=2048, N=8, K=4, H=256, softcap=50.0),
    Case(name="mistral_7b_window", B=1, T=8192, S=8192, N=32, K=8, H=128, window=4096),
    Case(name="llama3_8b_decode", B=1, T=1, S=2048, N=32, K=8, H=128, q_offset=2047),
    Case(name="llama3_1b", B=2, T=2048, S=2048, N=32, K=8, H=64),
    Case(name="llama3_1b_long", B=1, T=16384, S=16384, N=32, K=8, H=64),
    Case(name="llama3_8b_long", B=1, T=16384, S=16384, N=32, K=8, H=128),
    Case(name="gemma2_9b", B=2, T=2048, S=2048, N=16, K=8, H=256, softcap=50.0),
    Case(
        name="gemma2_9b_window", B=1, T=16384, S=16384, N=16, K=8, H=256, window=4096, softcap=50.0
    ),
)

ODD_CASES = (
    Case(name="one", B=1, T=1, S=1, N=1, K=1, H=8),
    Case(name="prime_gqa", B=2, T=37, S=37, N=4, K=2, H=8),
    Case(name="prime_mqa_window", B=1, T=43, S=43, N=3, K=1, H=8, window=11),
    Case(name="softcap", B=1, T=33, S=33, N=2, K=2, H=16, softcap=1.5),
    Case(
        name="packed_all_options",
        B=2,
        T=41,
        S=41,
        N=4,
        K=2,
        H=8,
        window=9,
        softcap=2.0,
        document=13,
    ),
    Case(name="decode", B=2, T=1, S=47, N=4, K=2, H=8, q_offset=40),
    Case(name="prefill_into_cache", B=1, T=19, S=53, N=2, K=1, H=8, q_offset=23, window=17),
    Case(name="queries_past_the_keys", B=1, T=9, S=13, N=2, K=1, H=8, q_offset=11),
    Case(name="rows_without_keys", B=1, T=35, S=35, N=2, K=1, H=8, q_offset=-20),
)


def make_inputs(case: Case, dtype: str, normal: Callable[[tuple[int, ...]], ArrayLike]) -> Inputs:
    """Make the arrays of a case; `normal` draws q, k and v, in this order, from their shapes."""
    q_shape, kv_shape = (case.B, case.T, case.N, case.H), (case.B, case.S, case.K, case.H)
    q, k, v = (jnp.asarray(normal(shape), dtype) for shape in (q_shape, kv_shape, kv_shape))
    segments = None
    if case.document is not None:
        row = [t // case.document for t in range(case.T)]
        segments = jnp.asarray([row] * case.B, jnp.int32)
    return Inputs(q, k, v, segments, segments, jnp.asarray(case.q_offset, jnp.int32))
