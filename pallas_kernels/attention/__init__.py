"""Causal attention with grouped heads, window, soft-cap and packed segments."""

from pallas_kernels.attention.api import CUDNN as CUDNN
from pallas_kernels.attention.api import OUTPUT_NAME as OUTPUT_NAME
from pallas_kernels.attention.api import STATISTICS_NAME as STATISTICS_NAME
from pallas_kernels.attention.api import attention as attention

__all__ = ["CUDNN", "OUTPUT_NAME", "STATISTICS_NAME", "attention"]
