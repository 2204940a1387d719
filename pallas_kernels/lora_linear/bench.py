"""What the benchmark of the LoRA product compares: ours, plain JAX, and the bare frozen product."""

from functools import partial

import jax
from jaxtyping import Array

from pallas_kernels.lora_linear.api import lora_linear
from pallas_kernels.lora_linear.base import frozen_linear
from pallas_kernels.lora_linear.cases import REAL_CASES, Case, Drawn, make_inputs
from pallas_kernels.lora_linear.contract import Adapter, Prepared
from pallas_kernels.lora_linear.prepare import prepare_adapters

FORMULA = "y_j = x W_j^T + s_j (x A_j^T) B_j^T"

CASES = {case.name: case for case in REAL_CASES}

Outputs = tuple[Array, ...]
Differentiated = tuple[Array, tuple[Adapter, ...]]
Rest = tuple[Drawn, Prepared]


def arguments(case: Case) -> tuple[Differentiated, Rest]:
    """Make the differentiated arguments and the others.

    Adapters are prepared once a step, not once a layer, so that is not timed.
    """
    inputs = make_inputs(case, "bfloat16", partial(jax.random.normal, jax.random.key(0)))
    stacks = [Adapter(*(one[None] for one in adapter)) for adapter in inputs.adapters]
    return (inputs.x, inputs.adapters), (inputs, prepare_adapters(stacks, inputs.x.dtype))


def flops(case: Case) -> int:
    """Operations of the frozen products, beside which the branches' are few."""
    return 2 * case.M * case.I * sum(case.O)


def flops_both(case: Case) -> int:
    """Operations with the gradient: as many again for dx."""
    return 2 * flops(case)


def _ours(backend: str, case: Case, arrays: Differentiated, rest: Rest) -> Outputs:
    del case
    x, adapters = arrays
    return lora_linear(x, rest[0].weights, adapters, prepared=rest[1], backend=backend)


def _bare(case: Case, arrays: Differentiated, rest: Rest) -> Outputs:
    del case
    return tuple(frozen_linear(arrays[0], weight) for weight in rest[0].weights)


PROVIDERS = {"ours": partial(_ours, "auto"), "xla": partial(_ours, "xla"), "bare": _bare}
