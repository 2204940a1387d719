"""Cross-entropy fused with the projection onto the vocabulary."""

from pallas_kernels.cross_entropy.api import linear_cross_entropy as linear_cross_entropy
from pallas_kernels.cross_entropy.api import linear_cross_entropy_rows as linear_cross_entropy_rows

__all__ = ["linear_cross_entropy", "linear_cross_entropy_rows"]
