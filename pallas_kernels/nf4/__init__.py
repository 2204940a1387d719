"""4-bit weights of bitsandbytes: a stack of them as one leaf, dequantised a layer at a time."""

from pallas_kernels.nf4.api import dequantize_group as dequantize_group
from pallas_kernels.nf4.api import dequantize_nf4 as dequantize_nf4
from pallas_kernels.nf4.bank import Bank as Bank
from pallas_kernels.nf4.bank import Stack as Stack
from pallas_kernels.nf4.bank import is_stack as is_stack
from pallas_kernels.nf4.bank import layer_matrix as layer_matrix
from pallas_kernels.nf4.contract import NF4 as NF4
from pallas_kernels.nf4.contract import Beside as Beside
from pallas_kernels.nf4.contract import NestedAbsmax as NestedAbsmax
from pallas_kernels.nf4.contract import from_pairs as from_pairs
from pallas_kernels.nf4.contract import to_pairs as to_pairs
from pallas_kernels.nf4.plain import with_plain_absmax as with_plain_absmax
from pallas_kernels.nf4.quantize import double_quantize as double_quantize
from pallas_kernels.nf4.quantize import quantize_nf4 as quantize_nf4

__all__ = [
    "NF4",
    "Bank",
    "Beside",
    "NestedAbsmax",
    "Stack",
    "dequantize_group",
    "dequantize_nf4",
    "double_quantize",
    "from_pairs",
    "is_stack",
    "layer_matrix",
    "quantize_nf4",
    "to_pairs",
    "with_plain_absmax",
]
