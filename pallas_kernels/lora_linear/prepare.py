"""Adapters in the form that products read: cast, scaled and put together once for all layers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.lora_linear.contract import Adapter, Prepared


def prepare_adapters(adapters: Sequence[Adapter], dtype: DTypeLike) -> Prepared:
    """Put the adapters of one group together, for `lora_linear`.

    Done once a step and outside the loop over layers, it spares every layer a dozen small kernels.
    It has no gradient: that of A and B comes from `lora_linear`'s own arguments.

    Args:
      adapters: Stacks: A_j [L, r_j, I], B_j [L, O_j, r_j] and s_j [L].
      dtype: That of `lora_linear`'s x.

    Returns:
      See `Prepared`.
    """
    most = max(adapter.a.shape[1] for adapter in adapters)
    scaled = [(adapter.scale[:, None, None] * adapter.a).astype(dtype) for adapter in adapters]
    b = [
        jnp.pad(adapter.b.astype(dtype), ((0, 0), (0, 0), (0, most - adapter.b.shape[2])))
        for adapter in adapters
    ]
    a, b = jnp.concatenate(scaled, axis=1), jnp.concatenate(b, axis=1)
    return Prepared(lax.stop_gradient(a), lax.stop_gradient(b))
