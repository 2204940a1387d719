"""4-bit stacks of a model: from and to files, filled layer by layer; or random."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from convert import QuantizedInfo, QuantizedTensor
from jaxtune.models.placement import put
from pallas_kernels import NF4
from pallas_kernels.blockwise_quant.tables import DYNAMIC_TABLE
from pallas_kernels.nf4 import NestedAbsmax, from_pairs, to_pairs
from pallas_kernels.nf4.tables import NF4_TABLE


def from_file(tensor: QuantizedTensor, place: NamedSharding | None) -> NF4:
    """A 4-bit weight of a checkpoint on the device, its values unchanged.

    Args:
      tensor: As it is stored.
      place: Where the arrays go; None: JAX's default device.

    Returns:
      A stack of one layer.
    """
    info, nested = tensor.info, None
    if tensor.nested_absmax is not None and tensor.nested_table is not None:
        nested = NestedAbsmax(
            absmax=put(tensor.nested_absmax[None], place),
            table=put(tensor.nested_table, place),
            offset=put(np.asarray([tensor.offset], np.float32), place),
            block=info.nested_block or 0,
        )
    rows, columns = info.shape
    return NF4(
        codes=_from_pairs(put(tensor.codes, place))[None],
        absmax=put(tensor.absmax[None], place),
        table=put(tensor.table, place),
        nested=nested,
        matrix=(rows, columns),
        dtype=str(info.dtype),
        block=info.block,
    )


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


_from_pairs, _to_pairs = jax.jit(from_pairs), jax.jit(to_pairs)


def empty_stack(one: NF4, layers: int) -> NF4:
    """Room for `layers` weights like `one`, where `one` lies."""

    def room(array: jax.Array) -> jax.Array:
        return jnp.zeros((layers, *array.shape[1:]), array.dtype, device=array.sharding)

    nested = one.nested
    if nested is not None:
        nested = dataclasses.replace(nested, absmax=room(nested.absmax), offset=room(nested.offset))
    return dataclasses.replace(one, codes=room(one.codes), absmax=room(one.absmax), nested=nested)


@functools.partial(jax.jit, donate_argnums=0)
def put_layer(stack: NF4, one: NF4, slot: jax.Array) -> NF4:
    """Write a stack of one into a stack, in the stack's memory.

    Args:
      stack: Consumed.
      one: Of the same kind.
      slot: Where.

    Returns:
      The stack.
    """

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(whole, part[0], slot, 0)

    nested = stack.nested
    if nested is not None and one.nested is not None:
        nested = dataclasses.replace(
            nested,
            absmax=put(nested.absmax, one.nested.absmax),
            offset=put(nested.offset, one.nested.offset),
        )
    codes, absmax = put(stack.codes, one.codes), put(stack.absmax, one.absmax)
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
