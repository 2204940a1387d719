"""Fine-tune Llama, Mistral, Gemma and Qwen3 in JAX, and hand the result to PyTorch users.

Names are resolved at first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtune import functional as functional
    from jaxtune.api import FastLanguageModel as FastLanguageModel
    from jaxtune.api import FastModel as FastModel
    from jaxtune.chat_templates import get_chat_template as get_chat_template
    from jaxtune.chat_templates import standardize_data_formats as standardize_data_formats
    from jaxtune.chat_templates import standardize_sharegpt as standardize_sharegpt
    from jaxtune.chat_templates import to_sharegpt as to_sharegpt
    from jaxtune.chat_templates import train_on_responses_only as train_on_responses_only
    from jaxtune.generation.streamers import TextIteratorStreamer as TextIteratorStreamer
    from jaxtune.generation.streamers import TextStreamer as TextStreamer
    from jaxtune.memory import memory_stats as memory_stats
    from jaxtune.models.precision import is_bfloat16_supported as is_bfloat16_supported
    from jaxtune.new_tokens import add_new_tokens as add_new_tokens
    from jaxtune.torch_export import to_torch as to_torch
    from jaxtune.training.callbacks import TrainerCallback as TrainerCallback
    from jaxtune.training.collators import DataCollatorForSeq2Seq as DataCollatorForSeq2Seq
    from jaxtune.training.config import SFTConfig as SFTConfig
    from jaxtune.training.config import TrainingArguments as TrainingArguments
    from jaxtune.training.config import UnslothTrainingArguments as UnslothTrainingArguments
    from jaxtune.training.early_stopping import EarlyStoppingCallback as EarlyStoppingCallback
    from jaxtune.training.trainer import SFTTrainer as SFTTrainer
    from jaxtune.training.trainer import UnslothTrainer as UnslothTrainer

_HOMES = {
    "DataCollatorForSeq2Seq": "jaxtune.training.collators",
    "EarlyStoppingCallback": "jaxtune.training.early_stopping",
    "FastLanguageModel": "jaxtune.api",
    "FastModel": "jaxtune.api",
    "SFTConfig": "jaxtune.training.config",
    "SFTTrainer": "jaxtune.training.trainer",
    "TextIteratorStreamer": "jaxtune.generation.streamers",
    "TextStreamer": "jaxtune.generation.streamers",
    "TrainerCallback": "jaxtune.training.callbacks",
    "TrainingArguments": "jaxtune.training.config",
    "UnslothTrainer": "jaxtune.training.trainer",
    "UnslothTrainingArguments": "jaxtune.training.config",
    "functional": "jaxtune",
    "is_bfloat16_supported": "jaxtune.models.precision",
    "memory_stats": "jaxtune.memory",
    "add_new_tokens": "jaxtune.new_tokens",
    "get_chat_template": "jaxtune.chat_templates",
    "standardize_data_formats": "jaxtune.chat_templates",
    "standardize_sharegpt": "jaxtune.chat_templates",
    "to_sharegpt": "jaxtune.chat_templates",
    "to_torch": "jaxtune.torch_export",
    "train_on_responses_only": "jaxtune.chat_templates",
}

__all__ = [
    "DataCollatorForSeq2Seq",
    "EarlyStoppingCallback",
    "FastLanguageModel",
    "FastModel",
    "SFTConfig",
    "SFTTrainer",
    "TextIteratorStreamer",
    "TextStreamer",
    "TrainerCallback",
    "TrainingArguments",
    "UnslothTrainer",
    "UnslothTrainingArguments",
    "add_new_tokens",
    "functional",
    "get_chat_template",
    "is_bfloat16_supported",
    "memory_stats",
    "standardize_data_formats",
    "standardize_sharegpt",
    "to_sharegpt",
    "to_torch",
    "train_on_responses_only",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxtune' has no attribute {name!r}; it has {__all__}")
    home = _HOMES[name]
    if home == __name__:
        return importlib.import_module(f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
