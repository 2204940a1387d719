"""Optimizers and schedules under the names of `TrainingArguments`."""

from jaxtune.optim.adafactor import adafactor as adafactor
from jaxtune.optim.adamw_8bit import adamw_8bit as adamw_8bit
from jaxtune.optim.groups import embedding_labels as embedding_labels
from jaxtune.optim.lion import lion_8bit as lion_8bit
from jaxtune.optim.lion import lion_32bit as lion_32bit
from jaxtune.optim.paged import paged as paged

__all__ = ["adafactor", "adamw_8bit", "embedding_labels", "lion_8bit", "lion_32bit", "paged"]
