"""The public op: argument checks and the choice of the backend."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, Problem, choose, current_device
from pallas_kernels.nf4 import triton, xla
from pallas_kernels.nf4.contract import NF4

BACKENDS: tuple[Backend, ...] = (triton.BACKEND, xla.BACKEND, triton.INTERPRET)


def dequantize_nf4(
    weight: NF4,
    layer: int | Int[Array, ""],
    dtype: DTypeLike,
    *,
    beside: Float[Array, "O E"] | None = None,
    backend: str = "auto",
) -> Float[Array, "O IE"]:
    """One layer of a 4-bit stack as a dense matrix, bit-equal to bitsandbytes' value.

    w_i = dtype(table[code_i] * absmax_{i // block}); see `NF4`. With `beside`: [w, beside], so that
    one product with [x, p] gives x w^T + p beside^T.

    It has no gradient: 4-bit weights are frozen. Call it inside a `custom_vjp`, or inside the body
    that is rematerialised, lest the result becomes a residual.

    Args:
      weight: The stack.
      layer: Index of the layer; may be traced.
      dtype: Of the result; the value is rounded to `weight.dtype` first.
      beside: Columns that follow the weight's, of the result's dtype.
      backend: "auto", "xla", "triton" or "interpret".

    Returns:
      [O, I], or [O, I + E].

    Raises:
      ValueError: The arrays do not fit each other.
      Unsupported: The forced backend is missing or cannot do this call.
    """
    check_stack(weight)
    problem = Problem(
        op="dequantize_nf4",
        device=current_device(),
        dtype=str(jnp.dtype(dtype)),
        sizes={
            "L": weight.codes.shape[0],
            "C": weight.codes.shape[1],
            "O": weight.matrix[0],
            "I": weight.matrix[1],
            "block": weight.block,
            "E": 0 if beside is None else beside.shape[1],
        },
        options={"nested": weight.nested is not None},
    )
    chosen = choose(backend, BACKENDS, problem)
    return chosen.forward(weight, jnp.asarray(layer, jnp.int32), jnp.dtype(dtype), beside)


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
