"""The public op: argument checks, choice of the backend, the one `custom_vjp`."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.lora_linear import triton, xla
from pallas_kernels.lora_linear.contract import (
    Adapter,
    Inputs,
    Options,
    Prepared,
    Residuals,
    Weight,
)
from pallas_kernels.lora_linear.prepare import prepare_adapters

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)

# Name under which a `jax.checkpoint` policy can save s z A^T, the residual that is no input.
INNER_NAME = "lora_input"


def lora_linear(
    x: Float[Array, "*B I"],
    weights: Sequence[Weight],
    adapters: Sequence[Adapter],
    *,
    layer: Int[Array, ""] | int = 0,
    dropped: Float[Array, "..."] | None = None,
    prepared: Prepared | None = None,
    backend: str = "auto",
    dequantizer: str | None = None,
) -> tuple[Float[Array, "*B _"], ...]:
    """Project one input by several frozen weights, each with its LoRA branch.

    y_j = x W_j^T + p_j B_j^T,  p_j = s_j z A_j^T,  z = x or its dropped copy
    With Q_j = s_j dy_j B_j:  dx = sum_j dy_j W_j,  dz = sum_j Q_j A_j,  dA_j = Q_j^T z,
    dB_j = dy_j^T p_j

    x is read once for all p_j and once for all dA_j. Sums over I, O and rows are float32 (float64
    for float64). Where all weights are 4-bit the branch is summed in the accumulator of the
    weights' product, if that costs less: [x, p] meets [W_j, B_j], and in the backward pass
    [dy_0, ..., Q] meets [W_0; ...; A]. No dense copy of a quantised weight is a residual.

    Args:
      x: Input, [..., I].
      weights: W_j, [O_j, I], or stacks of quantised weights, [L, O_j, I]; frozen.
      adapters: A_j [r_j, I], B_j [O_j, r_j] and s_j, which has no gradient.
      layer: Index into weights that are stacks; may be traced.
      dropped: What the A_j multiply, if not x: x after dropout, [..., I].
      prepared: The values of all layers' adapters, which `layer` chooses from, put together by
        `prepare_adapters` outside the loop over layers; those of `adapters` are not read then.
      backend: "auto", "xla", "triton" or "interpret".
      dequantizer: Backend of the dequantisation; None: as `backend`.

    Returns:
      y_j, [..., O_j] in x's dtype.

    Raises:
      ValueError: No weight, or shapes that do not fit.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2106.09685; https://arxiv.org/abs/2510.00206 (the traffic).
    """
    _check(x, dropped, weights, adapters)
    layer = jnp.asarray(layer, jnp.int32)
    place = layer
    if prepared is None:
        stacks = [Adapter(*(jnp.asarray(one)[None] for one in adapter)) for adapter in adapters]
        prepared, place = prepare_adapters(stacks, x.dtype), jnp.int32(0)
    _check_prepared(prepared, x, adapters)
    inputs = Inputs(x, dropped, tuple(weights), tuple(adapters), prepared, layer, place)
    problem = Problem(
        op="lora_linear",
        device=current_device(),
        dtype=str(x.dtype),
        sizes={"I": x.shape[-1], "R": max(adapter.a.shape[0] for adapter in adapters)},
    )
    options = Options(kernels=dequantizer or backend)
    return differentiable(choose(backend, BACKENDS, problem), options, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(
    backend: Backend, options: Options, inputs: Inputs
) -> tuple[Float[Array, "*B _"], ...]:
    """Run one backend; `lora_linear` without the checks and the choice."""
    return backend.forward(options, inputs)[0]


def _forward(
    backend: Backend, options: Options, inputs: Inputs
) -> tuple[tuple[Float[Array, "*B _"], ...], Residuals]:
    y, residuals = backend.forward(options, inputs)
    return y, residuals._replace(p=checkpoint_name(residuals.p, INNER_NAME))


def _backward(
    backend: Backend,
    options: Options,
    residuals: Residuals,
    dy: tuple[Float[Array, "*B _"], ...],
) -> tuple[Inputs]:
    return (backend.backward(options, residuals, dy),)


differentiable.defvjp(_forward, _backward)


def _check(
    x: Array, dropped: Array | None, weights: Sequence[Weight], adapters: Sequence[Adapter]
) -> None:
    """Refuse what no backend could serve."""
    width, pairs = x.shape[-1], list(zip(weights, adapters, strict=False))
    if not pairs or len(weights) != len(adapters):
        raise ValueError(
            "`weights` and `adapters` must be as many, one at least; got "
            f"{len(weights)} and {len(adapters)}."
        )
    for weight, (a, b, _) in pairs:
        out = weight.shape[-2]
        rank = a.shape[0]
        if weight.shape[-1] != width or a.shape != (rank, width) or b.shape != (out, rank):
            raise ValueError(
                "W must be [O, I], A [r, I] and B [O, r], with I of x; got "
                f"{weight.shape[-2:]}, {a.shape} and {b.shape} for an x of {x.shape}."
            )
    if dropped is not None and dropped.shape != x.shape:
        raise ValueError(f"`dropped` must have x's shape {x.shape}; got {dropped.shape}.")


def _check_prepared(prepared: Prepared, x: Array, adapters: Sequence[Adapter]) -> None:
    """Refuse what was prepared for another group or dtype."""
    ranks = [adapter.a.shape[0] for adapter in adapters]
    a = (sum(ranks), x.shape[-1])
    b = (sum(adapter.b.shape[0] for adapter in adapters), max(ranks))
    got = (prepared.a.shape[1:], prepared.b.shape[1:], prepared.a.dtype, prepared.b.dtype)
    if got != (a, b, x.dtype, x.dtype):
        raise ValueError(
            "`prepared` must come from `prepare_adapters` of these adapters and x's dtype, of "
            f"shapes [L, *{a}] and [L, *{b}] in {x.dtype}; got {prepared.a.dtype}"
            f"{prepared.a.shape} and {prepared.b.dtype}{prepared.b.shape}."
        )
