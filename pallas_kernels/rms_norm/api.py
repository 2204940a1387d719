"""The public ops: argument checks, choice of the backend, the one `custom_vjp`."""

from dataclasses import asdict
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.rms_norm import triton, xla
from pallas_kernels.rms_norm.contract import Options, Residuals, Wanted

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)
Pair = tuple[Float[Array, "... D"], Float[Array, "... D"]]


def rms_norm(
    x: Float[Array, "... D"],
    weight: Float[Array, " D"],
    *,
    eps: float,
    unit_offset: bool = False,
    backend: str = "auto",
) -> Float[Array, "... D"]:
    """Divide rows by their root mean square.

    n = x * rsqrt(mean(x^2, D) + eps), in float32 (float64 for float64 inputs)
    y = cast(n) * weight, or with `unit_offset`  y = cast(n * (1 + weight))

    Llama's and Gemma's forms, each with Hugging Face's order of the casts to x's dtype; Llama's
    weight is cast to it too. The backward keeps x, the weight and rsqrt(..), one number a row; it
    computes in float32 and casts once. A frozen weight costs no gradient.

    Args:
      x: Rows, [..., D], float32/bfloat16/float16 (float64 under x64).
      weight: [D]; of any of these dtypes.
      eps: Added to the mean square, > 0.
      unit_offset: Gemma's form.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [..., D] in x's dtype.

    Raises:
      ValueError: The weight is not [D], an axis is empty, or eps <= 0.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/1910.07467; `LlamaRMSNorm` and `Gemma2RMSNorm` of transformers
      (https://github.com/huggingface/transformers/pull/29402, the order of the casts).
    """
    return add_rms_norm(x, None, weight, eps=eps, unit_offset=unit_offset, backend=backend)[0]


def add_rms_norm(
    x: Float[Array, "... D"],
    residual: Float[Array, "... D"] | None,
    weight: Float[Array, " D"],
    *,
    eps: float,
    unit_offset: bool = False,
    backend: str = "auto",
) -> Pair:
    """Add to the residual stream and normalise the sum, in one pass.

    h = x + residual,  y = rms_norm(h);  dx = d_residual = dh + rms_norm's backward of dy

    The backward is one pass too, and keeps h in place of x and the residual. With None for the
    residual h is x: whoever uses x both by itself and normalised takes both from here, so that
    their cotangents meet inside the pass.

    Args:
      x: The stream, [..., D], float32/bfloat16/float16 (float64 under x64).
      residual: What joins it, [..., D], x's dtype; or None.
      weight: [D].
      eps: Added to the mean square, > 0.
      unit_offset: Gemma's form; see `rms_norm`.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      (y, h), both [..., D] in x's dtype.

    Raises:
      ValueError: Shapes that do not fit, an empty axis, or eps <= 0.
      TypeError: x and the residual differ in dtype.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: see `rms_norm`.
    """
    _check(x, residual, weight, eps)
    options = Options(eps=eps, unit_offset=unit_offset)
    problem = Problem(
        op="rms_norm",
        device=current_device(),
        dtype=str(x.dtype),
        sizes={"M": x.size // x.shape[-1], "D": x.shape[-1]},
        options={**asdict(options), "adds": residual is not None},
    )
    return differentiable(choose(backend, BACKENDS, problem), options, x, residual, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(
    backend: Backend,
    options: Options,
    x: Float[Array, "... D"],
    residual: Float[Array, "... D"] | None,
    weight: Float[Array, " D"],
) -> Pair:
    """Run one backend; `add_rms_norm` without the checks and the choice."""
    return backend.forward(options, x, residual, weight)[0]


def _forward(
    backend: Backend,
    options: Options,
    x: CustomVJPPrimal,
    residual: CustomVJPPrimal | None,
    weight: CustomVJPPrimal,
) -> tuple[Pair, tuple[Wanted, Residuals]]:
    added = None if residual is None else residual.value
    pair, residuals = backend.forward(options, x.value, added, weight.value)
    return pair, (Wanted(weight=weight.perturbed), residuals)


def _backward(
    backend: Backend, options: Options, kept: tuple[Wanted, Residuals], cotangents: tuple[Any, Any]
) -> tuple[Array | None, Array | None, Array | None]:
    wanted, residuals = kept
    dy, dh = (None if isinstance(g, SymbolicZero) else g for g in cotangents)
    if dy is None:
        return dh, dh, None  # None is JAX's zero cotangent
    dx, d_weight = backend.backward(options, wanted, residuals, dy, dh)
    return dx, dx, d_weight


# symbolic_zeros tells `_forward` whether the weight is trained, and `_backward` whether h was used.
differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


def _check(x: Array, residual: Array | None, weight: Array, eps: float) -> None:
    """Refuse what no backend could serve."""
    if x.ndim == 0 or weight.shape != x.shape[-1:] or 0 in x.shape:
        raise ValueError(
            f"`x` must be [..., D] and `weight` [D], no axis empty; got {x.shape}, {weight.shape}."
        )
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"`residual` must have `x`'s shape; got {residual.shape}, wanted {x.shape}."
        )
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(
            f"`x` and `residual` must have one dtype; got {x.dtype}, {residual.dtype}. Cast."
        )
    if eps <= 0:
        raise ValueError(f"`eps` must be > 0; got {eps}.")
