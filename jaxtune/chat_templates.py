"""Unsloth's names for chats, in one place: `from jaxtune.chat_templates import ...`."""

from jaxtune.data.chat_template_choice import get_chat_template
from jaxtune.data.sharegpt import standardize_data_formats, standardize_sharegpt, to_sharegpt
from jaxtune.training.responses import train_on_responses_only

__all__ = [
    "get_chat_template",
    "standardize_data_formats",
    "standardize_sharegpt",
    "to_sharegpt",
    "train_on_responses_only",
]
