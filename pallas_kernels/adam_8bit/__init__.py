"""AdamW with moments in 8 bits: one pass over a parameter, its gradient and its state."""

from pallas_kernels.adam_8bit.api import adam_8bit as adam_8bit
from pallas_kernels.adam_8bit.contract import Decays as Decays
from pallas_kernels.adam_8bit.contract import Moments as Moments
from pallas_kernels.adam_8bit.contract import zero_moments as zero_moments

__all__ = ["Decays", "Moments", "adam_8bit", "zero_moments"]
