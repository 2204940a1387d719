"""From a product to a logit: scale and soft-cap, and their slope."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.cross_entropy.contract import Options


def logits(
    options: Options,
    product: Float[Array, "..."],
    tanh: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, "..."]:
    """Scale and bound: z = cap(scale * product),  cap(z) = softcap * tanh(z / softcap)."""
    if options.softcap is None:
        return product if options.logit_scale == 1 else product * options.logit_scale
    return options.softcap * tanh(product * (options.logit_scale / options.softcap))


def slope(options: Options, z: Float[Array, "..."]) -> Float[Array, "..."] | float:
    """Derivative of `logits`: scale * (1 - (z / softcap)^2)."""
    if options.softcap is None:
        return options.logit_scale
    return options.logit_scale * (1 - (z * (1 / options.softcap)) ** 2)
