"""Whether offloaded layer inputs come back as they left: asked on the first batch of a run.

XLA has returned the wrong slice of an offloaded scan residual without a word
(https://github.com/openxla/xla/pull/46231), so a plan that offloads is tried before it is used.
"""

import jax
import numpy as np

from jaxtune.data.batch import Batch, MicroBatches
from jaxtune.models.decoder import CausalLM
from jaxtune.training.step import split, window_gradient

LIMIT = 0.02  # of a gradient's norm; rounding and unordered sums in 16 bits stay well below


def check_offload(
    model: CausalLM, batch: Batch | MicroBatches, rows: int, *, part: int = 1
) -> None:
    """Compare the gradients of a micro-batch with and without offload.

    Args:
      model: Its plan is "offload" or "least"; unchanged afterwards.
      batch: Of the first step.
      rows: Of a micro-batch; the first ones of a `Batch` are taken.
      part: Only so manieth a part of its tokens is compared, where the plan "full" with all of them
        would not fit into the device.

    Raises:
      RuntimeError: A gradient differs by more than `LIMIT` of its norm.
    """
    micro = batch.first() if isinstance(batch, MicroBatches) else batch
    length = micro.input_ids.shape[1]
    micro = _first(micro, rows, max(length // part, 1))
    gradient = jax.jit(window_gradient, static_argnums=(0, 4))
    found, offloading = {}, model.model.remat
    try:
        for plan in ("full", offloading):
            model.model.remat = plan
            found[plan] = gradient(*split(model), micro, 1)[0]
    finally:
        model.model.remat = offloading
    difference = largest_difference(found[offloading], found["full"])
    if not difference <= LIMIT:
        raise RuntimeError(
            "layer inputs kept in host memory must give the same gradients as without; on the "
            f"first batch they differ by {difference:.3g} of their norm, wanted <= {LIMIT}. This "
            "version of JAX moves them wrongly on this device: pass "
            "use_gradient_checkpointing=True, or use another version."
        )


def _first(batch: Batch, rows: int, length: int) -> Batch:
    """The first tokens of the first rows."""
    segments, positions = batch.segment_ids, batch.positions
    return Batch(
        input_ids=batch.input_ids[:rows, :length],
        labels=batch.labels[:rows, :length],
        segment_ids=None if segments is None else segments[:rows, :length],
        positions=None if positions is None else positions[:rows, :length],
        dropout_key=batch.dropout_key,
        layout=batch.layout,
    )


def largest_difference(actual: object, expected: object) -> float:
    """Over the leaves of two trees, the largest |actual - expected| / |expected|; NaN is kept."""
    worst = [0.0]
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.linalg.norm(np.asarray(right, np.float64)))
        gap = float(np.linalg.norm(np.asarray(left, np.float64) - np.asarray(right, np.float64)))
        worst.append(gap / scale if scale else gap)
    return float(np.max(worst))
