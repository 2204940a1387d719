"""Linear cross-entropy in plain JAX: a scan over chunks of rows, the gradient in the forward."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy.contract import IGNORED, Options, Residuals, Wanted
from pallas_kernels.dispatch import Backend, serves_all

LOGITS_BYTES = 256 * 2**20  # budget of one chunk's logits in the accumulation dtype
ROW_MULTIPLE = 64  # rows of a chunk, so that its products tile well


def rows_per_chunk(M: int, V: int, itemsize: int) -> int:
    """Choose the rows of a chunk: equal chunks whose [rows, V] logits fit the budget in bytes."""
    limit = max(LOGITS_BYTES // (itemsize * V) // ROW_MULTIPLE, 1) * ROW_MULTIPLE
    if limit >= M:
        return M
    count = -(-M // limit)
    return -(-M // (count * ROW_MULTIPLE)) * ROW_MULTIPLE


def forward(
    options: Options,
    wanted: Wanted,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
) -> tuple[Float[Array, ""], Residuals]:
    """Sum the losses and take the wanted gradients in the same pass.

    Args:
      options: Static arguments.
      wanted: Which of dx and d_head to make; neither costs only the logits.
      x: Hidden states, [M, D].
      head: Output embedding, [V, D].
      labels: Right token of every row, -100 for none, [M].

    Returns:
      The loss in float32 or wider, and its gradients: dx in x's dtype, d_head summed over the
      chunks in float32 or wider.
    """
    M, D = x.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows = options.chunk_rows or rows_per_chunk(M, head.shape[0], wide.itemsize)
    rows = min(rows, M)
    count = -(-M // rows)
    extra = count * rows - M
    x_chunks = jnp.pad(x, ((0, extra), (0, 0))).reshape(count, rows, D)
    label_chunks = jnp.pad(labels, (0, extra), constant_values=IGNORED).reshape(count, rows)

    def chunk(
        carry: tuple[Array, Array | None], xs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array | None], Array | None]:
        loss, d_head = carry
        x_c, labels_c = xs
        loss_c, dz = _chunk_loss(options, x_c, head, labels_c)
        if d_head is not None:
            d_head += jnp.einsum("MV,MD->VD", dz, x_c, preferred_element_type=wide)
        if not wanted.x:
            return (loss + loss_c, d_head), None
        dx_c = jnp.einsum("MV,VD->MD", dz, head, preferred_element_type=wide)
        return (loss + loss_c, d_head), dx_c.astype(x.dtype)

    start = (jnp.zeros((), wide), jnp.zeros(head.shape, wide) if wanted.head else None)
    (loss, d_head), dx = lax.scan(chunk, start, (x_chunks, label_chunks))
    if dx is not None:
        dx = dx.reshape(count * rows, D)[:M]
    return loss, Residuals(dx, None if d_head is None else d_head.astype(head.dtype))


def backward(
    options: Options, residuals: Residuals, g: Float[Array, ""]
) -> tuple[Float[Array, "M D"] | None, Float[Array, "V D"] | None]:
    """Multiply the gradients of the forward by the cotangent of the loss."""
    del options
    return _scaled(residuals.dx, g), _scaled(residuals.d_head, g)


def _chunk_loss(
    options: Options,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
) -> tuple[Float[Array, ""], Float[Array, "M V"]]:
    """Loss of some rows and dz, its gradient by the logits before the soft-cap, in x's dtype.

    dz = (softmax(z) - onehot(label)) * (1 - (z / softcap)^2), 0 for an ignored row
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    z = jnp.einsum("MD,VD->MV", x, head, preferred_element_type=wide)
    if options.softcap is not None:
        z = options.softcap * jnp.tanh(z / options.softcap)
    counted = labels != IGNORED
    largest = z.max(axis=1)
    lse = largest + jnp.log(jnp.exp(z - largest[:, None]).sum(axis=1))
    # A gather reads the few logits that it needs; the comparison fuses with the pass that makes dz.
    right = labels[:, None] == jnp.arange(head.shape[0])[None, :]
    inside = (labels >= 0) & (labels < head.shape[0])
    picked = jnp.take_along_axis(z, jnp.where(inside, labels, 0)[:, None], axis=1)[:, 0]
    picked = jnp.where(inside, picked, 0)
    loss = jnp.where(counted, lse - picked, 0).sum()
    dz = jnp.exp(z - lse[:, None]) - right
    if options.softcap is not None:
        dz *= 1 - (z / options.softcap) ** 2
    return loss, jnp.where(counted[:, None], dz, 0).astype(x.dtype)


def _scaled(gradient: Array | None, g: Float[Array, ""]) -> Array | None:
    return None if gradient is None else (gradient.astype(g.dtype) * g).astype(gradient.dtype)


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward, backward=backward)
