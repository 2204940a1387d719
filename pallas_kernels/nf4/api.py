"""The public op: argument checks and the choice of the backend."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.nf4 import triton, xla
from pallas_kernels.nf4.contract import NF4, Beside

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)


def dequantize_nf4(
    weight: NF4, layer: int | Int[Array, ""], dtype: DTypeLike, *, backend: str = "auto"
) -> Float[Array, "O I"]:
    """One layer of a 4-bit stack as a dense matrix, bit-equal to bitsandbytes' value.

    w_i = dtype(table[code_i] * absmax_{i // block}); see `NF4`.

    It has no gradient: 4-bit weights are frozen. Call it inside a `custom_vjp`, or inside the body
    that is rematerialised, lest the result becomes a residual.

    Args:
      weight: The stack.
      layer: Index of the layer; may be traced. A stack of one layer has no other to read: it
        stands for a longer one, of which that layer alone was brought here.
      dtype: Of the result; the value is rounded to `weight.dtype` first.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [O, I].

    Raises:
      ValueError: The arrays do not fit each other.
      Unsupported: The forced backend is missing or cannot do this call.
    """
    return dequantize_group([weight], layer, dtype, backend=backend)


def dequantize_group(
    weights: Sequence[NF4],
    layer: int | Int[Array, ""],
    dtype: DTypeLike,
    *,
    beside: Beside | None = None,
    below: int = 0,
    backend: str = "auto",
) -> Float[Array, "OB IE"]:
    """One layer of several stacks of one width in one matrix; see `dequantize_nf4`.

    With `beside`: [w, beside], so that one product with [x, p] gives x w^T + p beside^T.

    Args:
      weights: The stacks; their rows follow each other.
      layer: Index into each; may be traced.
      dtype: Of the result.
      beside: Columns that follow the weights'.
      below: Rows that follow theirs, for the caller to fill.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [sum of O + below, I + E].

    Raises:
      ValueError: The arrays do not fit each other.
      Unsupported: The forced backend is missing or cannot do this call.
    """
    extra = 0 if beside is None else beside.width
    chosen = set()
    for weight in weights:
        check_stack(weight)
        chosen.add(choose(backend, BACKENDS, _problem(weight, dtype, extra)))
    # Weights that different backends would serve are plain JAX's together.
    one = chosen.pop() if len(chosen) == 1 else xla.BACKEND
    layer = 0 if all(weight.shape[0] == 1 for weight in weights) else layer
    return one.forward(
        tuple(weights), jnp.asarray(layer, jnp.int32), jnp.dtype(dtype), beside, below
    )


def _problem(weight: NF4, dtype: DTypeLike, extra: int) -> Problem:
    return Problem(
        op="dequantize_nf4",
        device=current_device(),
        dtype=str(jnp.dtype(dtype)),
        sizes={
            "L": weight.codes.shape[0],
            "C": weight.codes.shape[1],
            "O": weight.matrix[0],
            "I": weight.matrix[1],
            "block": weight.block,
            "E": extra,
        },
        options={"nested": weight.nested is not None},
    )


def check_stack(weight: NF4) -> None:
    """Refuse a stack whose arrays do not fit each other.

    Raises:
      ValueError: Names the array.
    """
    layers = weight.codes.shape[0]
    elements = weight.matrix[0] * weight.matrix[1]
    blocks = -(-elements // weight.block)
    expected = [
        ("codes", weight.codes, (layers, -(-elements // 2))),
        ("absmax", weight.absmax, (layers, blocks)),
        ("table", weight.table, (16,)),
    ]
    if weight.nested is not None:
        nested = weight.nested
        expected += [
            ("nested.absmax", nested.absmax, (layers, -(-blocks // nested.block))),
            ("nested.table", nested.table, (256,)),
            ("nested.offset", nested.offset, (layers,)),
        ]
    for name, array, shape in expected:
        if array.shape != shape:
            raise ValueError(
                f"`NF4.{name}` of {layers} weights {weight.matrix} in blocks of {weight.block} "
                f"must have shape {shape}; got {array.shape}."
            )
