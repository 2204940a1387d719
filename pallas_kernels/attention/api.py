"""The public op: argument checks, choice of the backend, the one `custom_vjp`."""

from dataclasses import asdict
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import cudnn, triton, xla
from pallas_kernels.attention.contract import Inputs, Options, Residuals
from pallas_kernels.dispatch import Backend, Problem, choose, current_device, no_backward

BACKENDS: tuple[Backend, ...] = (cudnn.BACKEND, triton.BACKEND, xla.BACKEND, triton.INTERPRET)

LONGEST = 2**30  # of a traced window: a position beside it is still an int32

# Names under which a `jax.checkpoint` policy can save the two residuals that are not inputs.
OUTPUT_NAME = "attention_output"
STATISTICS_NAME = "attention_lse"
# cuDNN's forward is one primitive, whose name begins so; a policy can save its outputs.
CUDNN = cudnn.PRIMITIVE


def attention(  # noqa: PLR0913  (the argument list of the published op)
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    scale: float,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    q_segment_ids: Int[Array, "B T"] | None = None,
    kv_segment_ids: Int[Array, "B S"] | None = None,
    q_offset: int | Int[Array, ""] = 0,
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """Attend causally; every key/value head serves G = N/K query heads.

    z[t,s] = cap(scale * sum_H q[t] k[s]),  cap(z) = softcap * tanh(z / softcap)
    o[t]   = sum_S softmax_S(z[t] where visible(t,s)) v[s]
    visible(t,s) = s <= t + q_offset  and  t + q_offset - s < window  and  same segment

    Scores and softmax are float32 (float64 for float64 inputs); probabilities are cast to v's
    dtype before they meet v, as in HF's eager attention. A query that sees no key gives 0 and
    has zero gradients. Never makes a [T, S] array at training lengths.

    Args:
      q: Queries, [B, T, N, H], float32/bfloat16/float16 (float64 under x64).
      k: Keys, [B, S, K, H], q's dtype; K divides N.
      v: Values, [B, S, K, H], q's dtype.
      scale: Factor on the dot products, dimensionless; often H^-1/2.
      window: Attention span in tokens, the query's own included, >= 1; None is unlimited. May be
        traced, so that layers of one scan differ; one of the row's length or more hides nothing.
      softcap: Bound on the scores before the mask, > 0; None leaves them unbounded.
      q_segment_ids: Document of every query, [B, T]; None: one document a row.
      kv_segment_ids: Document of every key, [B, S]; given iff `q_segment_ids` is.
      q_offset: Index in tokens, on the key axis, of query 0; may be traced (decoding).
      backend: "auto", "cudnn", "xla", "triton" or "interpret".

    Returns:
      [B, T, N, H] in q's dtype.

    Raises:
      ValueError: shapes that do not fit, only one of the segment ids, window or softcap <= 0.
      TypeError: q, k and v differ in dtype.
      Unsupported: the forced backend is missing or cannot do this call.

    Source: https://arxiv.org/abs/2307.08691 (blockwise form); HF `eager_attention_forward` in
      https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma2/modeling_gemma2.py
      (order of soft-cap, mask and casts).
    """
    offset = jnp.asarray(q_offset, jnp.int32)
    traced = isinstance(window, jax.Array)
    span = jnp.minimum(window, LONGEST).astype(jnp.int32) if traced else None
    inputs = Inputs(q, k, v, q_segment_ids, kv_segment_ids, offset, span)
    options = Options(scale=scale, window=None if traced else window, softcap=softcap)
    _check(inputs, options)
    B, T, N, H = q.shape
    problem = Problem(
        op="attention",
        device=current_device(),
        dtype=str(q.dtype),
        sizes={"B": B, "T": T, "S": k.shape[1], "N": N, "K": k.shape[2], "H": H},
        options={
            **asdict(options),
            "segments": q_segment_ids is not None,
            "whole": isinstance(q_offset, int) and q_offset == 0,
            "traced_window": traced,
        },
    )
    chosen = choose(backend, BACKENDS, problem)
    if chosen.backward is no_backward:  # its forward has one of its own
        return chosen.forward(options, inputs)
    return differentiable(chosen, options, inputs)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def differentiable(backend: Backend, options: Options, inputs: Inputs) -> Float[Array, "B T N H"]:
    """Run one backend with its own backward; `attention` without the checks and the choice."""
    return backend.forward(options, inputs)[0]


def _forward(
    backend: Backend, options: Options, inputs: Inputs
) -> tuple[Float[Array, "B T N H"], Residuals]:
    y, residuals = backend.forward(options, inputs)
    y = checkpoint_name(y, OUTPUT_NAME)
    return y, residuals._replace(o=y, lse=checkpoint_name(residuals.lse, STATISTICS_NAME))


def _backward(
    backend: Backend, options: Options, residuals: Residuals, dy: Float[Array, "B T N H"]
) -> tuple[Inputs]:
    dq, dk, dv = backend.backward(options, residuals, dy)
    # None is JAX's zero cotangent; segment ids and offsets are integers. Inputs types primals.
    return (Inputs(dq, dk, dv, None, None, None, None),)  # pyrefly: ignore[bad-argument-type]


differentiable.defvjp(_forward, _backward)


def _check(inputs: Inputs, options: Options) -> None:
    """Refuse what no backend could serve."""
    q, k, v = inputs.q, inputs.k, inputs.v
    if not q.dtype == k.dtype == v.dtype:
        raise TypeError(
            f"`q`, `k` and `v` must have one dtype; got {q.dtype}, {k.dtype}, {v.dtype}. Cast them."
        )
    fits = (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3]) and k.shape == v.shape
    if not fits or 0 in q.shape + k.shape:
        raise ValueError(
            "`q` must be [B, T, N, H], `k` and `v` [B, S, K, H] with equal B and H, no axis empty; "
            f"got {q.shape}, {k.shape}, {v.shape}."
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"`q` must have a multiple of `k`'s heads; got {q.shape[2]} query heads for "
            f"{k.shape[2]} key heads."
        )
    if (inputs.q_segment_ids is None) != (inputs.kv_segment_ids is None):
        missing = "q_segment_ids" if inputs.q_segment_ids is None else "kv_segment_ids"
        raise ValueError(f"Segment ids are given for both sides or neither; got no `{missing}`.")
    if options.window is not None and options.window < 1:
        raise ValueError(f"`window` must be >= 1 token or None; got {options.window}.")
    if options.softcap is not None and options.softcap <= 0:
        raise ValueError(f"`softcap` must be > 0 or None; got {options.softcap}.")
