"""What the benchmark of the LoRA product compares: ours, plain JAX, and the bare frozen product."""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.lora_linear.api import lora_linear
from pallas_kernels.lora_linear.base import frozen_linear
from pallas_kernels.lora_linear.cases import REAL_CASES, Case, Drawn, make_inputs
from pallas_kernels.lora_linear.contract import Adapter

FORMULA = "y_j = x W_j^T + s_j (x A_j^T) B_j^T"

CASES = {case.name: case for case in REAL_CASES}

Outputs = tuple[Array, ...]
Differentiated = tuple[Array, tuple[Adapter, ...]]


def arguments(case: Case) -> tuple[Differentiated, tuple[Drawn]]:
    """Make the differentiated arguments and the others."""
    inputs = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    return (inputs.x, inputs.adapters), (inputs,)


def flops(case: Case) -> int:
    """Operations of the frozen products, beside which the branches' are few."""
    return 2 * case.M * case.I * sum(case.O)


def flops_both(case: Case) -> int:
    """Operations with the gradient: as many again for dx."""
    return 2 * flops(case)


def _ours(backend: str, case: Case, arrays: Differentiated, rest: tuple[Drawn]) -> Outputs:
    del case
    x, adapters = arrays
    return lora_linear(x, rest[0].weights, adapters, backend=backend)


def _bare(case: Case, arrays: Differentiated, rest: tuple[Drawn]) -> Outputs:
    del case
    return tuple(frozen_linear(arrays[0], weight) for weight in rest[0].weights)


PROVIDERS = {"ours": partial(_ours, "auto"), "xla": partial(_ours, "xla"), "bare": _bare}
