"""The README of what was saved: where it comes from and how to load it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert import atomic
from jaxtune.models.decoder import CausalLM

CARD = "README.md"
CARD_MARK = "library_name: peft\ntags:\n- jaxtune\n"


def write_card(model: CausalLM, folder: Path) -> None:
    """Say in the adapter's README how to load it; a README that is not ours stays.

    Args:
      model: With an adapter.
      folder: The adapter's.
    """
    path = folder / CARD
    if path.is_file() and not is_ours(path):
        return
    with atomic(path) as temporary:
        temporary.write_text(_card(model.carried.name_or_path, model.carried.base_changes), "utf-8")


def is_ours(card: Path) -> bool:
    """Say whether a README was written here, and may be written anew.

    Args:
      card: The file.

    Returns:
      True if it was.
    """
    return CARD_MARK in card.read_text(encoding="utf-8", errors="replace")


def _card(base: str, changes: Mapping[str, Any]) -> str:
    loading = f'base = AutoModelForCausalLM.from_pretrained("{base}")'
    imported, note = "AutoModelForCausalLM", ""
    if changes:
        imported = "AutoConfig, AutoModelForCausalLM"
        loading = "\n".join(
            [
                f'config = AutoConfig.from_pretrained("{base}")',
                *(f"config.get_text_config().{key} = {value!r}" for key, value in changes.items()),
                f'base = AutoModelForCausalLM.from_pretrained("{base}", config=config)',
            ]
        )
        note = (
            "\nThe base's position range was stretched for this adapter. Load the base with the\n"
            "values above, or its logits are not those of the training.\n"
        )
    return f"""---
base_model: {json.dumps(base)}
{CARD_MARK}---

# LoRA adapter for {base}

Trained with jaxtune.

```python
from peft import PeftModel
from transformers import {imported}

{loading}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
{note}"""
