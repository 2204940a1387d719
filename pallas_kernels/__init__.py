"""Operations of the training step, each one `custom_vjp` over interchangeable backends."""

from pallas_kernels.attention import attention as attention
from pallas_kernels.backends import check_backend as check_backend
from pallas_kernels.cross_entropy import linear_cross_entropy as linear_cross_entropy
from pallas_kernels.dispatch import Unsupported as Unsupported
from pallas_kernels.nf4 import NF4 as NF4
from pallas_kernels.nf4 import dequantize_nf4 as dequantize_nf4
from pallas_kernels.nf4 import quantize_nf4 as quantize_nf4
from pallas_kernels.nf4_matmul import nf4_matmul as nf4_matmul

__all__ = [
    "NF4",
    "Unsupported",
    "attention",
    "check_backend",
    "dequantize_nf4",
    "linear_cross_entropy",
    "nf4_matmul",
    "quantize_nf4",
]
