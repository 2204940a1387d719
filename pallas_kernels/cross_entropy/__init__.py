"""Cross-entropy fused with the projection onto the vocabulary."""

from pallas_kernels.cross_entropy.api import linear_cross_entropy as linear_cross_entropy

__all__ = ["linear_cross_entropy"]
