"""Products with frozen weights and their LoRA branches."""

from pallas_kernels.lora_linear.api import INNER_NAME as INNER_NAME
from pallas_kernels.lora_linear.api import lora_linear as lora_linear
from pallas_kernels.lora_linear.base import frozen_linear as frozen_linear
from pallas_kernels.lora_linear.contract import Adapter as Adapter
from pallas_kernels.lora_linear.contract import Prepared as Prepared
from pallas_kernels.lora_linear.prepare import prepare_adapters as prepare_adapters

__all__ = [
    "INNER_NAME",
    "Adapter",
    "Prepared",
    "frozen_linear",
    "lora_linear",
    "prepare_adapters",
]
