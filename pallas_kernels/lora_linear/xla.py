"""Backend of plain JAX, for every device."""

from functools import partial

from pallas_kernels.dispatch import Backend, serves_all
from pallas_kernels.lora_linear.group import backward, forward, slopes

BACKEND = Backend(
    name="xla", refuse=serves_all, forward=forward, backward=partial(backward, slopes)
)
