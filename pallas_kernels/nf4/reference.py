"""The definition, element by element in numpy's order of operations. Tests only."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.nf4.contract import NF4


def dequantize_nf4_ref(weight: NF4, layer: int, dtype: DTypeLike) -> Float[Array, "O I"]:
    """One layer, by the formula of `NF4`; eager, so that every operation rounds by itself."""
    elements = weight.matrix[0] * weight.matrix[1]
    codes, index = weight.codes[layer], jnp.arange(elements)
    half = codes.size
    code = jnp.where(index < half, codes[index % half] >> 4, codes[index % half] & 15)
    absmax = weight.absmax[layer]
    if weight.nested is not None:
        scale = weight.nested.absmax[layer][jnp.arange(absmax.size) // weight.nested.block]
        absmax = weight.nested.table[absmax] * scale
        absmax = absmax + weight.nested.offset[layer]
    value = weight.table[code] * absmax[index // weight.block]
    return value.astype(weight.dtype).reshape(weight.matrix).astype(dtype)
