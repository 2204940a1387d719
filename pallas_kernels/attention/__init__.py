"""Causal attention with grouped heads, window, soft-cap and packed segments."""

from pallas_kernels.attention.api import attention as attention

__all__ = ["attention"]
