"""The public op: argument checks, choice of the backend, the one `custom_vjp`."""

from dataclasses import asdict
from functools import partial

import jax
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.glu import triton, xla
from pallas_kernels.glu.contract import ACTIVATIONS, Options, Residuals

# Plain JAX is as fast by itself, and inside a program it fuses with what is around it: with slices
# of what a scan has kept, which a kernel would have copied first.
BACKENDS: tuple[Backend, ...] = (xla.BACKEND, triton.BACKEND, triton.INTERPRET)


def glu(
    gate: Float[Array, "... F"],
    up: Float[Array, "... F"],
    *,
    activation: str = "silu",
    backend: str = "auto",
) -> Float[Array, "... F"]:
    """Multiply one projection by the activation of another.

    y = cast(cast(a(gate)) * up)
    a(e) = e * sigmoid(e)  or  e * (1 + tanh(sqrt(2 / pi) (e + 0.044715 e^3))) / 2

    a is computed in float32 (float64 for float64 inputs) and cast to gate's dtype before it meets
    up, as torch does it. The backward keeps gate and up alone; it is one pass in float32 that casts
    d_gate and d_up once, where torch also casts a(gate) and dy * up.

    Args:
      gate: [..., F], float32/bfloat16/float16 (float64 under x64).
      up: gate's shape and dtype.
      activation: "silu" or "gelu_tanh".
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      gate's shape and dtype.

    Raises:
      ValueError: Shapes that differ or are empty, or another activation.
      TypeError: gate and up differ in dtype.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2002.05202; `LlamaMLP` and `GemmaMLP` of transformers.
    """
    _check(gate, up, activation)
    options = Options(activation=activation)
    problem = Problem(
        op="glu",
        device=current_device(),
        dtype=str(gate.dtype),
        sizes={"N": gate.size},
        options=asdict(options),
    )
    return differentiable(choose(backend, BACKENDS, problem), options, gate, up)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(
    backend: Backend, options: Options, gate: Float[Array, "... F"], up: Float[Array, "... F"]
) -> Float[Array, "... F"]:
    """Run one backend; `glu` without the checks and the choice."""
    return backend.forward(options, gate, up)[0]


def _forward(
    backend: Backend, options: Options, gate: Float[Array, "... F"], up: Float[Array, "... F"]
) -> tuple[Float[Array, "... F"], Residuals]:
    return backend.forward(options, gate, up)


def _backward(
    backend: Backend, options: Options, residuals: Residuals, dy: Float[Array, "... F"]
) -> tuple[Float[Array, "... F"], Float[Array, "... F"]]:
    return backend.backward(options, residuals, dy)


differentiable.defvjp(_forward, _backward)


def _check(gate: Array, up: Array, activation: str) -> None:
    """Refuse what no backend could serve."""
    if gate.shape != up.shape or 0 in gate.shape:
        raise ValueError(
            f"`gate` and `up` must have one shape, no axis empty; got {gate.shape}, {up.shape}."
        )
    if gate.dtype != up.dtype:
        raise TypeError(f"`gate` and `up` must have one dtype; got {gate.dtype}, {up.dtype}. Cast.")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"`activation` must be one of {', '.join(ACTIVATIONS)}; got {activation!r}."
        )
