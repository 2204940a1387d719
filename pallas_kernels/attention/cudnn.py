"""Attention by cuDNN, through JAX's public function, which has a gradient of its own."""

import jax
from jaxtyping import Array, Float

from pallas_kernels.attention.contract import Inputs, Options
from pallas_kernels.dispatch import Backend, Problem

PRIMITIVE = "dot_product_attention_fwd"  # its outputs are o and the softmax statistics
WIDE_HEADS = (9, 0)  # compute capability that has heads of more than 128


def forward(options: Options, inputs: Inputs) -> Float[Array, "B T N H"]:
    """One document a row; no soft-cap."""
    window = None if options.window is None else (options.window - 1, 0)
    return jax.nn.dot_product_attention(
        inputs.q,
        inputs.k,
        inputs.v,
        scale=options.scale,
        is_causal=True,
        local_window_size=window,
        implementation="cudnn",
    )


def refuse(problem: Problem) -> str | None:
    """Say why cuDNN cannot serve a problem."""
    device, sizes, options = problem.device, problem.sizes, problem.options
    if device.compute_capability is None or device.compute_capability < (8, 0):
        return f"it needs an NVIDIA GPU of compute capability 8.0; got {device}"
    if problem.dtype not in ("bfloat16", "float16"):
        return f"it needs bfloat16 or float16; got {problem.dtype}"
    if options["segments"] or options["softcap"] is not None or options["traced_window"]:
        return "it has no segments, no soft-cap and no traced window"
    if sizes["T"] != sizes["S"] or not options["whole"]:
        return "queries and keys must be the same whole rows"
    widest = 256 if device.compute_capability >= WIDE_HEADS else 128
    if sizes["H"] % 8 or sizes["H"] > widest:
        return f"heads must be a multiple of 8 and at most {widest} wide; got {sizes['H']}"
    return None


BACKEND = Backend(name="cudnn", refuse=refuse, forward=forward)
