"""Operations of the training step, each one `custom_vjp` over interchangeable backends."""

from pallas_kernels.attention import attention as attention
from pallas_kernels.backends import check_backend as check_backend
from pallas_kernels.cross_entropy import linear_cross_entropy as linear_cross_entropy
from pallas_kernels.dispatch import Unsupported as Unsupported

__all__ = ["Unsupported", "attention", "check_backend", "linear_cross_entropy"]
