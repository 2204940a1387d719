"""The public op: argument checks, choice of the backend, the one `custom_vjp`."""

from dataclasses import asdict
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy import triton, xla
from pallas_kernels.cross_entropy.contract import Options, Residuals, Wanted
from pallas_kernels.dispatch import Backend, Problem, choose, current_device

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)


def linear_cross_entropy(
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Float[Array, ""]:
    """Sum the token losses of hidden states projected onto the vocabulary.

    z = cap(logit_scale * x head^T),  cap(z) = softcap * tanh(z / softcap)
    log p[m] = z[m] - logsumexp_V(z[m]),  e = label_smoothing
    loss = sum over rows m with labels[m] != -100 of
           -((1 - e) * log p[m, labels[m]] + e * mean_V(log p[m]))

    The gradient is taken in the forward, chunk by chunk, so the [M, V] logits are never whole
    and never made twice; the backward only multiplies by the incoming scalar. It keeps dx, and
    d_head only if the head is differentiated. Logits, softmax and sums are float32 (float64 for
    float64 inputs); dz is cast to x's dtype for its two products. Keep the call outside
    `jax.checkpoint`, which would run it twice.

    Args:
      x: Hidden states after the final norm, [M, D], float32/bfloat16/float16.
      head: Output embedding, [V, D], x's dtype.
      labels: Index of the right token of every row, [M]; -100 leaves the row out. Any other
        value must lie in [0, V): the caller's contract, since nothing can raise under jit. One
        that does not is counted as if its logit were 0.
      softcap: Bound on the logits, > 0; None leaves them unbounded.
      logit_scale: Factor on the logits before the bound, dimensionless, > 0.
      label_smoothing: Share of every target that is spread evenly over the vocabulary, 0 to 1, as
        in torch.
      chunk_rows: Rows whose logits exist at a time, >= 1; None takes as many as fit 256 MiB.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      The sum, not the mean: a scalar, float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes that do not fit, or an option out of its range.
      TypeError: x and head differ in dtype.
      Unsupported: the forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2410.10989, section 3.2 (gradient in the forward).
    """
    options = Options(
        softcap=softcap,
        logit_scale=logit_scale,
        label_smoothing=label_smoothing,
        chunk_rows=chunk_rows,
    )
    chosen = choose(backend, BACKENDS, _problem(options, x, head, labels))
    return differentiable(chosen, options, x, head, labels)


def linear_cross_entropy_rows(
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Float[Array, " M"]:
    """Give the token losses that `linear_cross_entropy` sums, for evaluation.

    loss[m] = -((1 - e) * log p[m, labels[m]] + e * mean_V(log p[m])), 0 where labels[m] = -100

    It has no gradient, and makes none; the logits exist a chunk at a time.

    Args:
      x: Hidden states after the final norm, [M, D], float32/bfloat16/float16.
      head: Output embedding, [V, D], x's dtype.
      labels: As in `linear_cross_entropy`, [M].
      softcap: Bound on the logits, > 0; None leaves them unbounded.
      logit_scale: Factor on the logits before the bound, dimensionless, > 0.
      label_smoothing: Share of a target that is spread evenly over the vocabulary, 0 to 1.
      chunk_rows: Rows whose logits exist at a time, >= 1; None takes as many as fit 256 MiB.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [M], float32 (float64 for float64 inputs).

    Raises:
      ValueError: shapes that do not fit, or an option out of its range.
      TypeError: x and head differ in dtype.
      NotImplementedError: it is differentiated.
      Unsupported: the forced backend is missing or cannot do this call.
    """
    options = Options(
        softcap=softcap,
        logit_scale=logit_scale,
        label_smoothing=label_smoothing,
        chunk_rows=chunk_rows,
    )
    chosen = choose(backend, BACKENDS, _problem(options, x, head, labels))
    return _rows(chosen, options, x, head, labels)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(
    backend: Backend,
    options: Options,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
) -> Float[Array, ""]:
    """Run one backend; `linear_cross_entropy` without the checks and the choice."""
    return backend.forward(options, Wanted(x=False, head=False), x, head, labels)[0].sum()


def _forward(
    backend: Backend,
    options: Options,
    x: CustomVJPPrimal,
    head: CustomVJPPrimal,
    labels: CustomVJPPrimal,
) -> tuple[Float[Array, ""], Residuals]:
    wanted = Wanted(x=x.perturbed, head=head.perturbed)
    losses, residuals = backend.forward(options, wanted, x.value, head.value, labels.value)
    return losses.sum(), residuals


def _backward(
    backend: Backend, options: Options, residuals: Residuals, g: Any
) -> tuple[Array | None, Array | None, None]:
    if isinstance(g, SymbolicZero):
        return None, None, None
    dx, d_head = backend.backward(options, residuals, g)
    return dx, d_head, None  # None is JAX's zero cotangent


# symbolic_zeros tells `_forward` what is differentiated: no [V, D] gradient for a frozen head.
differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows(
    backend: Backend,
    options: Options,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
) -> Float[Array, " M"]:
    return backend.forward(options, Wanted(x=False, head=False), x, head, labels)[0]


def _no_gradient(*_: Any) -> Any:
    raise NotImplementedError(
        "`linear_cross_entropy_rows` has no gradient. Differentiate `linear_cross_entropy`, or "
        "stop the gradient of the inputs."
    )


_rows.defvjp(_no_gradient, _no_gradient)


def _problem(options: Options, x: Array, head: Array, labels: Array) -> Problem:
    """Describe a call, after refusing what no backend could serve."""
    _check(options, x, head, labels)
    return Problem(
        op="linear_cross_entropy",
        device=current_device(),
        dtype=str(x.dtype),
        sizes={"M": x.shape[0], "D": x.shape[1], "V": head.shape[0]},
        options=asdict(options),
    )


def _check(options: Options, x: Array, head: Array, labels: Array) -> None:
    if x.dtype != head.dtype:
        raise TypeError(f"`x` and `head` must have one dtype; got {x.dtype}, {head.dtype}. Cast.")
    if x.shape[1:] != head.shape[1:] or x.shape[:1] != labels.shape or 0 in x.shape + head.shape:
        raise ValueError(
            "`x` must be [M, D], `head` [V, D] and `labels` [M], no axis empty; got "
            f"{x.shape}, {head.shape}, {labels.shape}."
        )
    if options.softcap is not None and options.softcap <= 0:
        raise ValueError(f"`softcap` must be > 0 or None; got {options.softcap}.")
    if options.logit_scale <= 0:
        raise ValueError(f"`logit_scale` must be > 0; got {options.logit_scale}.")
    if not 0 <= options.label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must be 0 to 1; got {options.label_smoothing}.")
    if options.chunk_rows is not None and options.chunk_rows < 1:
        raise ValueError(f"`chunk_rows` must be >= 1 or None; got {options.chunk_rows}.")
