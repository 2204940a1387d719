"""bitsandbytes' dynamic 8 bits, block by block: what optimizer states and nested absmax are in."""

from pallas_kernels.blockwise_quant.api import dequantize_blockwise as dequantize_blockwise
from pallas_kernels.blockwise_quant.api import quantize_blockwise as quantize_blockwise
from pallas_kernels.blockwise_quant.contract import Blockwise as Blockwise

__all__ = ["Blockwise", "dequantize_blockwise", "quantize_blockwise"]
