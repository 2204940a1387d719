"""Fine-tune Llama and Gemma with LoRA in JAX, and hand the result to PyTorch users.

Names are resolved at first use, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtune import functional as functional
    from jaxtune.api import FastLanguageModel as FastLanguageModel
    from jaxtune.generation.streamers import TextIteratorStreamer as TextIteratorStreamer
    from jaxtune.generation.streamers import TextStreamer as TextStreamer
    from jaxtune.memory import memory_stats as memory_stats
    from jaxtune.training.config import SFTConfig as SFTConfig
    from jaxtune.training.config import UnslothTrainingArguments as UnslothTrainingArguments
    from jaxtune.training.state import TrainerCallback as TrainerCallback
    from jaxtune.training.trainer import SFTTrainer as SFTTrainer
    from jaxtune.training.trainer import UnslothTrainer as UnslothTrainer

_HOMES = {
    "FastLanguageModel": "jaxtune.api",
    "SFTConfig": "jaxtune.training.config",
    "SFTTrainer": "jaxtune.training.trainer",
    "TextIteratorStreamer": "jaxtune.generation.streamers",
    "TextStreamer": "jaxtune.generation.streamers",
    "TrainerCallback": "jaxtune.training.state",
    "UnslothTrainer": "jaxtune.training.trainer",
    "UnslothTrainingArguments": "jaxtune.training.config",
    "functional": "jaxtune",
    "memory_stats": "jaxtune.memory",
}

__all__ = [
    "FastLanguageModel",
    "SFTConfig",
    "SFTTrainer",
    "TextIteratorStreamer",
    "TextStreamer",
    "TrainerCallback",
    "UnslothTrainer",
    "UnslothTrainingArguments",
    "functional",
    "memory_stats",
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
