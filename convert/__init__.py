"""Files to numpy arrays and back: checkpoints, PEFT adapters and merged models, without JAX."""

from convert.adapter_config import AdapterConfig as AdapterConfig
from convert.adapter_config import is_literal as is_literal
from convert.adapter_config import names_module as names_module
from convert.checkpoint import Checkpoint as Checkpoint
from convert.checkpoint import open_checkpoint as open_checkpoint
from convert.companions import companions as companions
from convert.dequantized import DequantizedCheckpoint as DequantizedCheckpoint
from convert.dequantized import block_scales as block_scales
from convert.dequantized import dequantize as dequantize
from convert.errors import CheckpointError as CheckpointError
from convert.exporters import EXPORTERS as EXPORTERS
from convert.exporters import Exporter as Exporter
from convert.gguf_file import gguf_files as gguf_files
from convert.gguf_file import write_gguf as write_gguf
from convert.gguf_model import window_note as window_note
from convert.header import TensorInfo as TensorInfo
from convert.json_object import read_json_object as read_json_object
from convert.merged import MergePlan as MergePlan
from convert.merged import merge_adapter as merge_adapter
from convert.merged import plan_merge as plan_merge
from convert.model_config import dtype_of as dtype_of
from convert.model_config import merged_config as merged_config
from convert.model_config import ties_embeddings as ties_embeddings
from convert.names import added_name as added_name
from convert.names import file_name as file_name
from convert.peft import Adapter as Adapter
from convert.peft import open_adapter as open_adapter
from convert.peft import read_adapter as read_adapter
from convert.peft import write_adapter as write_adapter
from convert.quantization_config import Quantization as Quantization
from convert.quantization_config import quantization_of as quantization_of
from convert.quantization_config import with_quantization as with_quantization
from convert.quantization_config import without_quantization as without_quantization
from convert.quantized import QuantizedInfo as QuantizedInfo
from convert.quantized import QuantizedTensor as QuantizedTensor
from convert.quantized import part_names as part_names
from convert.quantized import quantized_infos as quantized_infos
from convert.quantized import read_quantized as read_quantized
from convert.quantized_form import computed_parts as computed_parts
from convert.quantized_form import new_info as new_info
from convert.quantized_form import stored_parts as stored_parts
from convert.rounding import FLOAT_DTYPES as FLOAT_DTYPES
from convert.rounding import cast as cast
from convert.rounding import merge_linear as merge_linear
from convert.stream import LazyTensor as LazyTensor
from convert.stream import write_lazy_safetensors as write_lazy_safetensors
from convert.tensors import atomic as atomic
from convert.tensors import read_safetensors as read_safetensors
from convert.tensors import write_json as write_json
from convert.tensors import write_safetensors as write_safetensors
from convert.writer import write_checkpoint as write_checkpoint

__all__ = [
    "EXPORTERS",
    "FLOAT_DTYPES",
    "Adapter",
    "AdapterConfig",
    "Checkpoint",
    "CheckpointError",
    "DequantizedCheckpoint",
    "Exporter",
    "LazyTensor",
    "MergePlan",
    "Quantization",
    "QuantizedInfo",
    "QuantizedTensor",
    "TensorInfo",
    "added_name",
    "atomic",
    "block_scales",
    "cast",
    "companions",
    "computed_parts",
    "dequantize",
    "dtype_of",
    "file_name",
    "gguf_files",
    "is_literal",
    "merge_adapter",
    "merge_linear",
    "merged_config",
    "names_module",
    "new_info",
    "open_adapter",
    "open_checkpoint",
    "part_names",
    "plan_merge",
    "quantization_of",
    "quantized_infos",
    "read_adapter",
    "read_json_object",
    "read_quantized",
    "read_safetensors",
    "stored_parts",
    "ties_embeddings",
    "window_note",
    "with_quantization",
    "without_quantization",
    "write_adapter",
    "write_checkpoint",
    "write_gguf",
    "write_json",
    "write_lazy_safetensors",
    "write_safetensors",
]
