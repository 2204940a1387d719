"""Operations of the training step, each one `custom_vjp` over interchangeable backends."""

from pallas_kernels.adam_8bit import adam_8bit as adam_8bit
from pallas_kernels.attention import attention as attention
from pallas_kernels.backends import check_backend as check_backend
from pallas_kernels.blockwise_quant import Blockwise as Blockwise
from pallas_kernels.blockwise_quant import dequantize_blockwise as dequantize_blockwise
from pallas_kernels.blockwise_quant import quantize_blockwise as quantize_blockwise
from pallas_kernels.cross_entropy import linear_cross_entropy as linear_cross_entropy
from pallas_kernels.cross_entropy import linear_cross_entropy_rows as linear_cross_entropy_rows
from pallas_kernels.dispatch import Unsupported as Unsupported
from pallas_kernels.glu import glu as glu
from pallas_kernels.lora_linear import frozen_linear as frozen_linear
from pallas_kernels.lora_linear import lora_linear as lora_linear
from pallas_kernels.nf4 import NF4 as NF4
from pallas_kernels.nf4 import dequantize_nf4 as dequantize_nf4
from pallas_kernels.nf4 import quantize_nf4 as quantize_nf4
from pallas_kernels.nf4_matmul import nf4_matmul as nf4_matmul
from pallas_kernels.rms_norm import add_rms_norm as add_rms_norm
from pallas_kernels.rms_norm import rms_norm as rms_norm

__all__ = [
    "NF4",
    "Blockwise",
    "Unsupported",
    "adam_8bit",
    "add_rms_norm",
    "attention",
    "check_backend",
    "dequantize_blockwise",
    "dequantize_nf4",
    "frozen_linear",
    "glu",
    "linear_cross_entropy",
    "linear_cross_entropy_rows",
    "lora_linear",
    "nf4_matmul",
    "quantize_blockwise",
    "quantize_nf4",
    "rms_norm",
]
