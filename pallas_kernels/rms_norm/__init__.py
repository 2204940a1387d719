"""Root-mean-square norm, with the addition to the residual stream before it."""

from pallas_kernels.rms_norm.api import add_rms_norm as add_rms_norm
from pallas_kernels.rms_norm.api import rms_norm as rms_norm

__all__ = ["add_rms_norm", "rms_norm"]
