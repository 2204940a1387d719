"""The order of the training rows: that of the Hugging Face trainer."""

from collections.abc import Sequence

import numpy as np


def torch_randperm(n: int, seed: int) -> np.ndarray:
    """`torch.randperm(n)` after `manual_seed(seed)`, without torch.

    Fisher-Yates from the front over MT19937 words: swap(i, i + w_i mod (n - i)).

    Args:
      n: Rows.
      seed: Generator seed, >= 0; its low 32 bits count, as in torch.

    Returns:
      A permutation of 0 .. n-1, [n] int64.

    Source: pytorch `aten/src/ATen/native/TensorFactories.cpp`, `randperm_cpu`.
    """
    order = np.arange(n)
    if n < 2:
        return order
    words = np.random.RandomState(seed % 2**32).randint(0, 2**32, n - 1, np.uint32)
    steps = words.astype(np.int64) % (n - np.arange(n - 1))
    for i, step in enumerate(steps):
        order[i], order[i + step] = order[i + step], order[i]
    return order


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch: accelerate's `SeedableRandomSampler` seeds by seed + epoch."""
    return torch_randperm(n, seed + epoch)


def grouped_by_length(lengths: Sequence[int] | np.ndarray, size: int, seed: int) -> np.ndarray:
    """Rows of like lengths side by side, the longest row first of all.

    The rows in `torch_randperm`'s order are cut into pieces of min(n // 4 size, 50) x size rows,
    each sorted by length, longest first; then the longest row changes places with the first one.

    Args:
      lengths: Of each row, tokens.
      size: Rows that should be alike: those of a window.
      seed: Generator seed, >= 0.

    Returns:
      A permutation of 0 .. n-1, [n] int64.

    Source: transformers `trainer_pt_utils.py`, `get_length_grouped_indices`.
    """
    count = len(lengths)
    piece = max(min(count // (size * 4), 50), 1) * size
    order = torch_randperm(count, seed)
    for start in range(0, count, piece):
        # Python's sort and NumPy's stable one keep rows of one length in their order.
        its = order[start : start + piece]
        order[start : start + piece] = its[np.argsort(-np.asarray(lengths)[its], kind="stable")]
    firsts = np.arange(0, count, piece)
    longest = firsts[np.argmax(np.asarray(lengths)[order[firsts]])] if count else 0
    order[[0, longest]] = order[[longest, 0]]
    return order


def sampled(
    lengths: Sequence[int] | np.ndarray, sampling: str, size: int, seed: int, epoch: int
) -> np.ndarray:
    """The rows of an epoch in the order that was asked for.

    Args:
      lengths: Of each row, tokens.
      sampling: "random", "sequential" or "group_by_length".
      size: Rows of a window.
      seed: Of the order.
      epoch: Counted from 0.

    Returns:
      A permutation of the rows' numbers.
    """
    if sampling == "sequential":
        return np.arange(len(lengths))
    if sampling == "group_by_length":
        return grouped_by_length(lengths, size, seed + epoch)
    return epoch_order(len(lengths), seed, epoch)
