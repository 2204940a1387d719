"""Batches that a collator of the user's own makes, on the host, row by row as it likes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.data.batch import IGNORE, Batch
from jaxtune.data.rows import TokenizedRows

Collator = Callable[[list[dict[str, Any]]], Any]
# What stands in its batch beside these is no input of a causal language model.
_READ = ("input_ids", "labels", "attention_mask")


def collated(
    rows: TokenizedRows,
    chosen: Sequence[int],
    collator: Collator,
    *,
    size: int,
    micro_batches: int,
    lengths: Sequence[int],
    granule: int,
) -> tuple[Batch, int]:
    """The micro-batches of a window as the collator makes them, padded to one static shape.

    The collator gets, for each row, `input_ids`, `attention_mask`, and `labels` where the rows
    have labels of their own.

    Args:
      rows: All rows.
      chosen: Numbers of the rows in the window.
      collator: The user's.
      size: Rows of a micro-batch.
      micro_batches: Of a window; what the rows do not fill is empty.
      lengths: Preferred row lengths, ascending; a longer batch gets a length of its own.
      granule: That such a length is a multiple of; tokens.

    Returns:
      [micro_batches * size, length], and the tokens in it.

    Raises:
      ValueError: The collator returns no labels, or arrays of other shapes.
    """
    groups = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    made = [_arrays(collator(_features(rows, group)), len(group)) for group in groups]
    longest = max(arrays["input_ids"].shape[1] for arrays in made)
    rounded = -(-longest // granule) * granule
    length = next((length for length in lengths if length >= longest), rounded)
    ids, segments = np.zeros((2, micro_batches * size, length), np.int32)
    labels = np.full(ids.shape, IGNORE, np.int32)
    for place, arrays in enumerate(made):
        count, width = arrays["input_ids"].shape
        at = np.s_[place * size : place * size + count, :width]
        segments[at] = arrays["attention_mask"] != 0
        ids[at] = arrays["input_ids"]
        labels[at] = np.where(segments[at] != 0, arrays["labels"], IGNORE)
    # Padding on the right alone is what "causal" promises.
    right = bool((np.diff(segments, axis=1) <= 0).all())
    batch = Batch(
        input_ids=ids,
        labels=labels,
        segment_ids=None if right else segments,
        layout="causal" if right else "packed",
    )
    return batch, int(segments.sum())


def _features(rows: TokenizedRows, chosen: Sequence[int]) -> list[dict[str, Any]]:
    features = [rows[number] for number in chosen]
    if rows.labels is None:
        for feature in features:
            del feature["labels"]
    return features


def _arrays(batch: Any, count: int) -> dict[str, np.ndarray]:
    """What is read of the collator's batch, as arrays of one shape."""
    if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= set(batch):
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            "`data_collator` must return a mapping with `input_ids` and `labels`, -100 where "
            f"nothing is learned; got {got}. Add what is missing, or leave the collator out."
        )
    arrays = {name: np.asarray(batch[name]) for name in _READ if name in batch}
    arrays.setdefault("attention_mask", np.ones_like(arrays["input_ids"]))
    shapes = {name: array.shape for name, array in arrays.items()}
    wanted = arrays["input_ids"].shape
    if len(wanted) != 2 or len(set(shapes.values())) > 1 or wanted[0] > count:
        raise ValueError(
            f"`data_collator` must return arrays [B, T] of one shape, B at most the {count} rows "
            f"that it got; got {shapes}. Collators that join rows into one are not needed: pass "
            "padding_free=True instead."
        )
    return arrays
