"""The product with a weight made dense first, for every device and any number of rows."""

from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.nf4 import NF4, dequantize_nf4


def forward(
    x: Float[Array, "M I"], weight: NF4, layer: Int[Array, ""], requested: str
) -> Float[Array, "M O"]:
    """The product.

    Args:
      x: [M, I].
      weight: The stack.
      layer: Its index.
      requested: Backend request for the dequantisation: "auto" takes its kernel on a GPU.

    Returns:
      [M, O] in x's dtype.
    """
    return x @ dequantize_nf4(weight, layer, x.dtype, backend=requested).T


BACKEND = Backend(name="xla", refuse=serves_all, forward=forward)
