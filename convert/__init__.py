"""Files to numpy arrays and back: safetensors checkpoints and PEFT adapters, without JAX."""

from convert.adapter_config import AdapterConfig as AdapterConfig
from convert.adapter_config import names_module as names_module
from convert.checkpoint import Checkpoint as Checkpoint
from convert.checkpoint import open_checkpoint as open_checkpoint
from convert.errors import CheckpointError as CheckpointError
from convert.header import TensorInfo as TensorInfo
from convert.peft import Adapter as Adapter
from convert.peft import read_adapter as read_adapter
from convert.peft import write_adapter as write_adapter
from convert.tensors import atomic as atomic
from convert.tensors import read_safetensors as read_safetensors
from convert.tensors import write_json as write_json
from convert.tensors import write_safetensors as write_safetensors

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Checkpoint",
    "CheckpointError",
    "TensorInfo",
    "atomic",
    "names_module",
    "open_checkpoint",
    "read_adapter",
    "read_safetensors",
    "write_adapter",
    "write_json",
    "write_safetensors",
]
