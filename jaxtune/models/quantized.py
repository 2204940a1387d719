"""4-bit stacks of a model: from and to files, filled layer by layer; or random."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from convert import QuantizedInfo, QuantizedTensor
from jaxtune.models.placement import held_at, put
from jaxtune.models.sharding import part_place
from pallas_kernels import NF4
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLE
from pallas_kernels.nf4 import NestedAbsmax, from_pairs, to_pairs
from pallas_kernels.nf4.tables import NF4_TABLE


def from_file(tensor: QuantizedTensor, mesh: Mesh | None) -> NF4:
    """A 4-bit weight of a checkpoint on the device, its codes still in the file's order.

    Args:
      tensor: As it is stored.
      mesh: Over whose devices it is spread; None: JAX's default device.

    Returns:
      A stack of one layer, for `in_our_order`.
    """

    def on_device(array: np.ndarray) -> jax.Array:
        return put(array, part_place(array.shape, mesh))

    info, nested = tensor.info, None
    if tensor.nested_absmax is not None and tensor.nested_table is not None:
        nested = NestedAbsmax(
            absmax=on_device(tensor.nested_absmax[None]),
            table=on_device(tensor.nested_table),
            offset=on_device(np.asarray([tensor.offset], np.float32)),
            block=info.nested_block or 0,
        )
    rows, columns = info.shape
    return NF4(
        codes=on_device(tensor.codes[None]),
        absmax=on_device(tensor.absmax[None]),
        table=on_device(tensor.table),
        nested=nested,
        matrix=(rows, columns),
        dtype=str(info.dtype),
        block=info.block,
    )


def in_our_order(one: NF4) -> NF4:
    """What `from_file` brought, its values unchanged and its codes as the kernels read them.

    Over a mesh the devices exchange parts, which several threads would do in any order, and each
    process in its own.
    """
    return dataclasses.replace(one, codes=_from_pairs(one.codes))


def to_file(stack: NF4, layer: int, info: QuantizedInfo) -> QuantizedTensor:
    """A 4-bit weight as a checkpoint stores it, its values unchanged; undoes `from_file`.

    Args:
      stack: On the device.
      layer: Its index in the stack.
      info: What the file will say of it.

    Returns:
      Its parts in host memory.
    """
    nested = stack.nested
    return QuantizedTensor(
        info=info,
        codes=np.asarray(_to_pairs(stack.codes[layer])),
        absmax=np.asarray(stack.absmax[layer]),
        table=np.asarray(stack.table),
        nested_absmax=None if nested is None else np.asarray(nested.absmax[layer]),
        nested_table=None if nested is None else np.asarray(nested.table),
        offset=None if nested is None else np.float32(nested.offset[layer]),
    )


_from_pairs, _to_pairs = jax.jit(jax.vmap(from_pairs)), jax.jit(to_pairs)


def empty_stack(one: NF4, layers: int, mesh: Mesh | None = None) -> NF4:
    """Room for `layers` weights like `one`: where `one` lies, or spread over a mesh."""

    def room(array: jax.Array) -> jax.Array:
        place = array.sharding if mesh is None else part_place(array.shape, mesh)
        return jnp.zeros((layers, *array.shape[1:]), array.dtype, device=place)

    nested = one.nested
    if nested is not None:
        nested = dataclasses.replace(nested, absmax=room(nested.absmax), offset=room(nested.offset))
    return dataclasses.replace(one, codes=room(one.codes), absmax=room(one.absmax), nested=nested)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def put_layer(stack: NF4, one: NF4, slot: jax.Array, mesh: Mesh | None = None) -> NF4:
    """Write a stack of one into a stack, in the stack's memory.

    Args:
      stack: Consumed.
      one: Of the same kind.
      slot: Where.
      mesh: Over which the stack is spread.

    Returns:
      The stack.
    """

    def write(whole: jax.Array, part: jax.Array) -> jax.Array:
        return held_at(
            lax.dynamic_update_index_in_dim(whole, part[0], slot, 0),
            part_place(whole.shape, mesh),
        )

    nested = stack.nested
    if nested is not None and one.nested is not None:
        nested = dataclasses.replace(
            nested,
            absmax=write(nested.absmax, one.nested.absmax),
            offset=write(nested.offset, one.nested.offset),
        )
    codes, absmax = write(stack.codes, one.codes), write(stack.absmax, one.absmax)
    return dataclasses.replace(stack, codes=codes, absmax=absmax, nested=nested)


def is_finite(stack: NF4) -> np.ndarray:
    """For each layer, whether its weight had neither NaN nor infinity, [L]."""
    scales = stack.absmax if stack.nested is None else stack.nested.offset[:, None]
    return np.asarray(jnp.isfinite(scales).all(axis=1))


def random_stack(
    key: jax.Array, layers: int, matrix: tuple[int, int], dtype: DTypeLike, std: float
) -> NF4:
    """Random weights that never were dense: for benchmarks and plans.

    Args:
      key: Of the draws.
      layers: L.
      matrix: (O, I).
      dtype: That a value is rounded to.
      std: About the weights' standard deviation.

    Returns:
      A double-quantised stack.
    """
    elements = math.prod(matrix)
    blocks = -(-elements // 64)
    draw = functools.partial(jax.random.bits, dtype=jnp.uint8)
    # Codes drawn evenly have the standard deviation 0.57 absmax.
    offset = std / 0.57
    return NF4(
        codes=draw(key, (layers, -(-elements // 2))),
        absmax=draw(jax.random.fold_in(key, 1), (layers, blocks)),
        table=jnp.asarray(NF4_TABLE, jnp.float32),
        nested=NestedAbsmax(
            absmax=jnp.full((layers, -(-blocks // 256)), offset / 4, jnp.float32),
            table=jnp.asarray(DYNAMIC_TABLE, jnp.float32),
            offset=jnp.full(layers, offset, jnp.float32),
        ),
        matrix=matrix,
        dtype=str(jnp.dtype(dtype)),
    )
