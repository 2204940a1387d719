"""The public op: argument checks, choice of the backend, the one `custom_vjp`."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.nf4 import NF4, dequantize_nf4
from pallas_kernels.nf4.api import check_stack
from pallas_kernels.nf4_matmul import triton, xla
from pallas_kernels.nf4_matmul.plan import WORTH_ELEMENTS, WORTH_ROWS

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)

Residuals = tuple[NF4, Int[Array, ""]]


def nf4_matmul(
    x: Float[Array, "*B I"], weight: NF4, layer: int | Int[Array, ""], *, backend: str = "auto"
) -> Float[Array, "*B O"]:
    """Multiply few rows by one layer of a 4-bit stack, as decoding does.

    y = x w^T,  w = x's dtype(`dequantize_nf4`(weight, layer)), with float32 sums

    The kernel reads the 4 bits and writes y alone; it serves up to 32 rows (the product of the
    leading axes), beyond which a dense w pays. Plain JAX dequantises, then multiplies.
    dx = dy w by dequantisation; the weight is frozen.

    Args:
      x: [..., I], float32/bfloat16/float16.
      weight: The stack of L weights [O, I].
      layer: Index of the layer; may be traced. As in `dequantize_nf4`, a stack of one layer is
        read at that one.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [..., O] in x's dtype.

    Raises:
      ValueError: The stack's arrays do not fit each other, or x does not fit them.
      Unsupported: The forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2305.14314, equation 5 (its first term).
    """
    check_stack(weight)
    rows, columns = weight.matrix
    if x.shape[-1:] != (columns,):
        raise ValueError(
            f"`x` must be [..., {columns}] for weights {weight.matrix}; got {x.shape}."
        )
    flat = x.reshape(-1, columns)
    problem = Problem(
        op="nf4_matmul",
        device=current_device(),
        dtype=str(x.dtype),
        sizes={
            "M": math.prod(x.shape[:-1]),
            "L": weight.codes.shape[0],
            "C": weight.codes.shape[1],
            "O": rows,
            "I": columns,
            "block": weight.block,
        },
        options={"nested": weight.nested is not None},
    )
    layer = 0 if weight.shape[0] == 1 else layer
    chosen = choose(backend, best_first(problem), problem)
    y = differentiable(chosen, backend, flat, weight, jnp.asarray(layer, jnp.int32))
    return y.reshape(*x.shape[:-1], rows)


def best_first(problem: Problem) -> tuple[Backend, ...]:
    """`BACKENDS` in the order for a problem.

    A small weight is read from the cache once it is dense, and more rows cost the kernel more.
    """
    sizes = problem.sizes
    worth = sizes["M"] <= WORTH_ROWS and sizes["O"] * sizes["I"] >= WORTH_ELEMENTS
    return BACKENDS if worth else (xla.BACKEND, *BACKENDS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(
    backend: Backend, requested: str, x: Float[Array, "M I"], weight: NF4, layer: Int[Array, ""]
) -> Float[Array, "M O"]:
    """Run one backend; `nf4_matmul` without the checks and the choice.

    Args:
      backend: The one that was chosen.
      requested: Backend request for what else the op calls.
      x: [M, I].
      weight: The stack.
      layer: Index of the layer.

    Returns:
      [M, O].
    """
    return backend.forward(x, weight, layer, requested)


def _forward(
    backend: Backend, requested: str, x: Float[Array, "M I"], weight: NF4, layer: Int[Array, ""]
) -> tuple[Float[Array, "M O"], Residuals]:
    return backend.forward(x, weight, layer, requested), (weight, layer)


def _backward(
    backend: Backend, requested: str, residuals: Residuals, dy: Float[Array, "M O"]
) -> tuple[Float[Array, "M I"], None, None]:
    del backend  # the transpose by dequantisation serves each of them
    return dy @ dequantize_nf4(*residuals, dy.dtype, backend=requested), None, None


differentiable.defvjp(_forward, _backward)
