"""The order of the training rows: that of the Hugging Face trainer."""

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
