"""The gated activation of an MLP."""

from pallas_kernels.glu.api import glu as glu

__all__ = ["glu"]
