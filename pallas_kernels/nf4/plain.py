"""A stack whose absmax are read as they are: for those who read the same weights many times."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.nf4.bank import Bank, Stack
from pallas_kernels.nf4.contract import NF4
from pallas_kernels.nf4.xla import layer_absmax


def with_plain_absmax(stack: Stack) -> Stack:
    """The same weights, bit for bit, with float32 absmax in place of nested ones.

    A plain absmax is 4 bytes for each block where a nested one is 1 and a little: 9 % more to read
    of blocks of 64. A kernel that is bound by instructions, as `nf4_matmul` is, is faster with it.

    Args:
      stack: Of all layers; one with plain absmax is returned as it is.

    Returns:
      The stack; its codes are not copied.
    """
    if isinstance(stack, Bank):
        plain = _plain(stack.quantized)
        return stack if plain is stack.quantized else dataclasses.replace(stack, quantized=plain)
    return _plain(stack)


def _plain(weight: NF4) -> NF4:
    if weight.nested is None:
        return weight
    layers = jnp.arange(weight.absmax.shape[0])
    absmax = jax.vmap(lambda layer: layer_absmax(weight, layer))(layers)
    return dataclasses.replace(weight, absmax=absmax, nested=None)
