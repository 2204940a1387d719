"""What the benchmark of a chunk's row losses compares: the best backend and plain JAX.

The part of the linear cross-entropy between its products: losses and dz of one chunk's logits.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels.cross_entropy import triton, xla
from pallas_kernels.cross_entropy.cases import REAL_CASES, Case
from pallas_kernels.cross_entropy.chunks import rows_per_chunk
from pallas_kernels.dispatch import Problem, current_device

FORMULA = """loss = logsumexp(z) - z[label];  dz = (softmax(z) - onehot(label)) * dcap
z = cap(product), product [rows, V] in float32, dz [rows, V] in bfloat16
Bytes a logit: 4 read for logsumexp, 4 read again and 2 written for dz."""
BYTES = 4 + 4 + 2
# Each vocabulary once, and every row counted.
CASES = {case.name: case for case in REAL_CASES if case.name in ("llama3_8b", "gemma2_9b")}


def arguments(case: Case) -> tuple[tuple[()], tuple[Array, Array]]:
    """Make the differentiated arguments, which are none, and the others."""
    shape = (rows_per_chunk(case.M, case.V, 4), case.V)
    labels = jnp.arange(shape[0], dtype=jnp.int32) * 7 % case.V
    return (), (jax.random.normal(jax.random.key(0), shape), labels)


def moved_bytes(case: Case) -> int:
    """Bytes that a chunk moves, since no program can keep a row."""
    return BYTES * rows_per_chunk(case.M, case.V, 4) * case.V


def _run(
    backend: Callable[..., tuple[Array, Array | None]],
    case: Case,
    arrays: tuple[()],
    rest: tuple[Array, Array],
) -> tuple[Array, Array | None]:
    del arrays
    return backend(case.options, *rest, jnp.bfloat16)


def _ours(case: Case, arrays: tuple[()], rest: tuple[Array, Array]) -> tuple[Array, Array | None]:
    problem = Problem(op="linear_cross_entropy", device=current_device(), dtype="bfloat16")
    best = triton if triton.BACKEND.refuse(problem) is None else xla
    return _run(best.row_losses, case, arrays, rest)


PROVIDERS = {"ours": _ours, "xla": partial(_run, xla.row_losses)}
