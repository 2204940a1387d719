"""Flash attention as Pallas Triton kernels: whole rows, of one document or of packed ones."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention import block_sizes, tiles
from pallas_kernels.attention.block_ranges import key_ranges, query_ranges
from pallas_kernels.attention.block_sizes import Blocks, Sizes
from pallas_kernels.attention.contract import Inputs, Options, Residuals
from pallas_kernels.attention.triton_backward import key_gradients, query_gradients
from pallas_kernels.attention.triton_forward import attend
from pallas_kernels.dispatch import Backend, Problem, current_device
from pallas_kernels.pallas_triton import backends
from pallas_kernels.row_split import split_rows

DTYPES = ("bfloat16", "float16", "float32")


def forward(
    options: Options, inputs: Inputs, *, sizes: Sizes | None = None, interpret: bool = False
) -> tuple[Float[Array, "B T N H"], Residuals]:
    """Attend block by block, each query block only to the key blocks that it may see.

    Args:
      options: Static arguments.
      inputs: Array arguments; `q_offset` must be 0, and is not read.
      sizes: Cuts of the axes; None chooses by head width, dtype and device.
      interpret: Run the kernel on any device, slowly.

    Returns:
      y in q's dtype, and the residuals of the backward (lse float32, -1e30 where a query sees no
      key).
    """
    blocks = (sizes or _sizes(inputs)).forward

    def rows(inputs: Inputs) -> tuple[Array, Array]:
        limits = _limits(options, inputs, blocks, key_ranges)
        return attend(options, inputs, limits, blocks, interpret=interpret)

    o, lse = split_rows(rows, inputs)
    return o, Residuals(inputs, o, lse)


def backward(
    options: Options,
    residuals: Residuals,
    dy: Float[Array, "B T N H"],
    *,
    sizes: Sizes | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """Gradients of q, k and v; the same bits for the same inputs."""
    chosen = sizes or _sizes(residuals.inputs)

    def rows(residuals: Residuals, dy: Array) -> tuple[Array, Array, Array]:
        inputs = residuals.inputs
        delta = (dy.astype(jnp.float32) * residuals.o.astype(jnp.float32)).sum(-1)  # [B, T, N]
        rest = (dy.astype(inputs.q.dtype), residuals.lse, delta.transpose(0, 2, 1))
        of_keys = _limits(options, inputs, chosen.dkv, query_ranges)
        dk, dv = key_gradients(options, inputs, rest, of_keys, chosen.dkv, interpret=interpret)
        of_queries = _limits(options, inputs, chosen.dq, key_ranges)
        dq = query_gradients(options, inputs, rest, of_queries, chosen.dq, interpret=interpret)
        return dq, dk, dv

    return split_rows(rows, residuals, dy)


def _sizes(inputs: Inputs) -> Sizes:
    H, itemsize = inputs.q.shape[3], inputs.q.dtype.itemsize
    return block_sizes.sizes(H, itemsize, current_device())


def _limits(
    options: Options, inputs: Inputs, blocks: Blocks, ranges: Callable[..., Array]
) -> tiles.Limits:
    """Operands that say what is visible, with the ranges of blocks if segments narrow them."""
    q_ids, kv_ids = inputs.q_segment_ids, inputs.kv_segment_ids
    span = inputs.span(options)
    made = None if q_ids is None else ranges(q_ids, kv_ids, blocks.q, blocks.k, span)
    window = None if inputs.window is None else inputs.window.reshape(1)
    return tiles.Limits(q_ids, kv_ids, made, window)


def refuse(problem: Problem) -> str | None:
    """Say why the kernels cannot serve a problem."""
    sizes, options = problem.sizes, problem.options
    if problem.dtype not in DTYPES:
        return f"it needs bfloat16, float16 or float32; got {problem.dtype}"
    if sizes["T"] != sizes["S"] or not options["whole"]:
        return "queries and keys must be the same whole rows"
    if sizes["H"] > block_sizes.WIDEST_HEAD:
        return f"heads must be at most {block_sizes.WIDEST_HEAD} wide; got {sizes['H']}"
    if options["scale"] <= 0:
        return f"the scale must be positive; got {options['scale']}"
    return None


def with_sizes(sizes: Sizes | None) -> tuple[Backend, Backend]:
    """Make the compiled and the interpreted backend with forced cuts; None chooses."""
    return backends(partial(forward, sizes=sizes), refuse, backward=partial(backward, sizes=sizes))


BACKEND, INTERPRET = with_sizes(None)
