"""Products of few rows with a 4-bit weight that is never dense in memory."""

from pallas_kernels.nf4_matmul.api import nf4_matmul as nf4_matmul

__all__ = ["nf4_matmul"]
