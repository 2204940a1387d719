"""Optimizers and schedules under the names of `TrainingArguments`."""
