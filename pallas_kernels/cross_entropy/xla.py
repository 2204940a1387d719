"""The losses of a chunk's rows, and their gradient, in plain JAX."""

from functools import partial

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy.chunks import backward, forward
from pallas_kernels.cross_entropy.contract import IGNORED, Options
from pallas_kernels.cross_entropy.logits import logits, slope
from pallas_kernels.dispatch import Backend, serves_all


def row_losses(
    options: Options,
    product: Float[Array, "M V"],
    labels: Int[Array, " M"],
    dtype: DTypeLike | None,
) -> tuple[Float[Array, " M"], Float[Array, "M V"] | None]:
    """Losses and dz, 0 for an ignored row; see `chunks.RowLosses`.

    With e the label smoothing:
    loss = logsumexp(z) - (1 - e) * z[label] - e * mean(z)
    dz = (softmax(z) - (1 - e) * onehot(label) - e / V) * slope(z)
    """
    z, V, smoothing = logits(options, product), product.shape[1], options.label_smoothing
    counted = labels != IGNORED
    largest = z.max(axis=1)
    lse = largest + jnp.log(jnp.exp(z - largest[:, None]).sum(axis=1))
    # A gather reads the few logits that it needs; the comparison fuses with the pass that makes dz.
    right = labels[:, None] == jnp.arange(V)[None, :]
    inside = (labels >= 0) & (labels < V)
    picked = jnp.take_along_axis(z, jnp.where(inside, labels, 0)[:, None], axis=1)[:, 0]
    losses = lse - (1 - smoothing) * jnp.where(inside, picked, 0)
    if smoothing:
        losses -= smoothing * z.mean(axis=1)
    losses = jnp.where(counted, losses, 0)
    if dtype is None:
        return losses, None
    dz = jnp.exp(z - lse[:, None]) - ((1 - smoothing) * right + smoothing / V)
    dz *= slope(options, z)
    return losses, jnp.where(counted[:, None], dz, 0).astype(dtype)


BACKEND = Backend(
    name="xla", refuse=serves_all, forward=partial(forward, row_losses), backward=backward
)
