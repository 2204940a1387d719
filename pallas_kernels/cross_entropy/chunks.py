"""The scan over chunks of rows that every backend shares: two or three products a chunk."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy.contract import Options, Residuals, Wanted

LOGITS_BYTES = 256 * 2**20  # budget of one chunk's logits in the accumulation dtype
ROW_MULTIPLE = 64  # rows of a chunk, so that its products tile well


# A backend's part: from the options, the product x head^T of some rows (before scale and soft-cap,
# float32 or wider), their labels and the dtype of the gradient (None: it is not wanted), the
# losses and their gradient by the product.
RowLosses = Callable[
    [Options, Float[Array, "M V"], Int[Array, " M"], DTypeLike | None],
    tuple[Float[Array, " M"], Float[Array, "M V"] | None],
]


def rows_per_chunk(M: int, V: int, itemsize: int) -> int:
    """Choose the rows of a chunk: equal chunks whose [rows, V] logits fit the budget in bytes."""
    limit = max(LOGITS_BYTES // (itemsize * V) // ROW_MULTIPLE, 1) * ROW_MULTIPLE
    if limit >= M:
        return M
    count = -(-M // limit)
    return -(-M // (count * ROW_MULTIPLE)) * ROW_MULTIPLE


def forward(
    row_losses: RowLosses,
    options: Options,
    wanted: Wanted,
    x: Float[Array, "M D"],
    head: Float[Array, "V D"],
    labels: Int[Array, " M"],
) -> tuple[Float[Array, " M"], Residuals]:
    """Give the losses and take the wanted gradients of their sum in the same pass.

    Args:
      row_losses: The backend's part.
      options: Static arguments.
      wanted: Which of dx and d_head to make; neither costs only the logits.
      x: Hidden states, [M, D].
      head: Output embedding, [V, D].
      labels: Right token of every row, -100 for none, [M].

    Returns:
      The losses in float32 or wider, and the gradients: dx in x's dtype, d_head summed over the
      chunks in float32 or wider.
    """
    M = x.shape[0]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows = min(options.chunk_rows or rows_per_chunk(M, head.shape[0], wide.itemsize), M)

    def chunk(
        carry: tuple[Array, Array | None, Array | None], n: Array
    ) -> tuple[tuple[Array, Array | None, Array | None], None]:
        losses, dx, d_head = carry
        # The last chunk ends with the rows and so may begin in the chunk before it, whose losses
        # and dx it makes again; padding instead would copy x and dx.
        start = jnp.minimum(n * rows, M - rows)
        x_c = lax.dynamic_slice_in_dim(x, start, rows)
        labels_c = lax.dynamic_slice_in_dim(labels, start, rows)
        product = jnp.einsum("MD,VD->MV", x_c, head, preferred_element_type=wide)
        dtype = x.dtype if wanted.x or wanted.head else None
        losses_c, dz = row_losses(options, product, labels_c, dtype)
        losses = lax.dynamic_update_slice_in_dim(losses, losses_c, start, 0)
        if dx is not None:
            dx_c = jnp.einsum("MV,VD->MD", dz, head, preferred_element_type=wide)
            dx = lax.dynamic_update_slice_in_dim(dx, dx_c.astype(x.dtype), start, 0)
        if d_head is not None:
            summed = start + jnp.arange(rows) < n * rows
            fresh = jnp.where(summed[:, None], 0, x_c)
            d_head += jnp.einsum("MV,MD->VD", dz, fresh, preferred_element_type=wide)
        return (losses, dx, d_head), None

    carry = (
        jnp.zeros(M, wide),
        jnp.zeros_like(x) if wanted.x else None,
        jnp.zeros(head.shape, wide) if wanted.head else None,
    )
    (losses, dx, d_head), _ = lax.scan(chunk, carry, jnp.arange(-(-M // rows)))
    return losses, Residuals(dx, None if d_head is None else d_head.astype(head.dtype))


def backward(
    options: Options, residuals: Residuals, g: Float[Array, ""]
) -> tuple[Float[Array, "M D"] | None, Float[Array, "V D"] | None]:
    """Multiply the gradients of the forward by the cotangent of the losses' sum."""
    del options
    return _scaled(residuals.dx, g), _scaled(residuals.d_head, g)


def _scaled(gradient: Array | None, g: Float[Array, ""]) -> Array | None:
    return None if gradient is None else (gradient.astype(g.dtype) * g).astype(gradient.dtype)
