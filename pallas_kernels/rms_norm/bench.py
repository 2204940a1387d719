"""What the benchmark of the norm compares: the best backend and plain JAX.

Only x is differentiated: the residual's gradient is the same array, and the weight is frozen, as
in LoRA training.
"""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.rms_norm.api import add_rms_norm, rms_norm
from pallas_kernels.rms_norm.cases import REAL_CASES, Case, make_inputs

FORMULA = "y = h / sqrt(mean(h^2) + eps) * w, h = x or x + r; dx = rstd (g - n mean(g n)), g = dy w"

CASES = {case.name: case for case in REAL_CASES}


def arguments(case: Case) -> tuple[tuple[Array], tuple[Array | None, Array]]:
    """Make the differentiated arguments and the others."""
    inputs = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return (inputs.x,), (inputs.residual, inputs.weight)


def moved_bytes(case: Case) -> int:
    """Bytes that the forward must move."""
    return case.forward_bytes


def moved_bytes_both(case: Case) -> int:
    """Bytes that the forward and then the backward must move."""
    return case.forward_bytes + case.backward_bytes


def _run(
    backend: str, case: Case, arrays: tuple[Array], rest: tuple[Array | None, Array]
) -> Array | tuple[Array, Array]:
    (x,), (residual, weight), options = arrays, rest, case.options
    if residual is None:
        run = partial(rms_norm, x, weight)
    else:
        run = partial(add_rms_norm, x, residual, weight)
    return run(eps=options.eps, unit_offset=options.unit_offset, backend=backend)


PROVIDERS = {"ours": partial(_run, "auto"), "xla": partial(_run, "xla")}
