"""The README of what was saved: what it is, how it was trained, how to load it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert import AdapterConfig, atomic
from jaxtune.adapters.counting import count_parameters
from jaxtune.models.configuration import text_part
from jaxtune.models.decoder import CausalLM

CARD = "README.md"
_MARK = "tags:\n- jaxtune\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """How far a saved folder's logits are from those of the model.

    Attributes:
      reader: The library that read the folder.
      difference: Largest difference over the largest logit.
      agreement: Share of positions with the same likeliest token.
    """

    reader: str
    difference: float
    agreement: float

    def line(self) -> str:
        """The figures as a sentence without its end."""
        return (
            f"read back by {self.reader}, its logits differ by at most {self.difference:.1e} of "
            f"the largest, and {100 * self.agreement:.1f} % of the likeliest tokens are the same"
        )


def write_card(model: CausalLM, folder: Path, measured: Measured | None = None) -> None:
    """Write the README of an adapter; one that is not ours stays.

    Args:
      model: With an adapter.
      folder: The adapter's.
      measured: What `verify` found.
    """
    carried = model.carried
    method = "DoRA" if carried.adapter.use_dora else "LoRA"
    kind = f"{method} adapter for {_one_line(carried.name_or_path)}"
    body = [
        _table(_adapter_rows(model, carried.adapter)),
        *_sections(model, measured),
        _loading(model),
    ]
    _write(folder / CARD, _front(model, "peft"), kind, body)


def write_merged_card(
    model: CausalLM, folder: Path, config: Mapping[str, Any], measured: Measured | None = None
) -> None:
    """Write the README of a merged or fully tuned model; one that is not ours stays.

    Args:
      model: That was written.
      folder: The checkpoint's.
      config: Its config.json.
      measured: What `verify` found.
    """
    carried, bits = model.carried, "quantization_config" in config
    done = "fine-tuned" if carried.adapter is None else "with an adapter merged in"
    said = "4 bits of bitsandbytes (nf4)" if bits else str(config.get("dtype"))
    rows = _table({"weights": said} | _adapter_rows(model, carried.adapter))
    loading = (
        "## Loading\n\n```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n```\n'
    )
    body = [rows, *_sections(model, measured), loading]
    kind = f"{_one_line(carried.name_or_path)}, {done}"
    _write(folder / CARD, _front(model, "transformers"), kind, body)


def is_ours(card: Path) -> bool:
    """Say whether a README was written here, and may be written anew.

    Args:
      card: The file.

    Returns:
      True if it was.
    """
    return _MARK in card.read_text(encoding="utf-8", errors="replace")


def _write(path: Path, front: str, kind: str, body: list[str]) -> None:
    if path.is_file() and not is_ours(path):
        return
    with atomic(path) as temporary:
        temporary.write_text("\n".join([front, f"# {kind}\n", *body]), "utf-8")


def _front(model: CausalLM, library: str) -> str:
    """The block that the hub reads; a name is written as JSON, which YAML contains."""
    return (
        f"---\nbase_model: {json.dumps(model.carried.name_or_path)}\nlibrary_name: {library}\n"
        f"{_MARK}pipeline_tag: text-generation\n---\n"
    )


def _adapter_rows(model: CausalLM, adapter: AdapterConfig | None) -> dict[str, str]:
    """What the adapter is, in PEFT's terms."""
    if adapter is None:
        return {}
    targets = adapter.target_modules
    names = targets if isinstance(targets, str) else sorted({t.rsplit(".")[-1] for t in targets})
    kinds = [name for name in ("use_rslora", "use_dora") if getattr(adapter, name)]
    return {
        "rank": f"{adapter.r}" + (", with exceptions" if adapter.rank_pattern else ""),
        "alpha": f"{adapter.lora_alpha}" + (f" ({', '.join(kinds)})" if kinds else ""),
        "modules": names if isinstance(names, str) else ", ".join(names),
        "trained parameters": f"{count_parameters(model)[0]:,}",
    }


def _sections(model: CausalLM, measured: Measured | None) -> list[str]:
    """Training, range and measurement, where there is something to say."""
    carried, found = model.carried, []
    if carried.training is not None:
        found.append(f"## Training\n\n{_table(carried.training())}")
    rope = text_part(carried.hf_config).get("rope_parameters") or {}
    kinds = [part.get("rope_type", "default") for part in (rope, *rope.values()) if _is_rope(part)]
    if any(kind != "default" for kind in kinds):
        found.append(
            "## RoPE scaling\n\nThe model was trained with\n\n"
            f"```json\n{json.dumps(rope, indent=2, sort_keys=True)}\n```\n"
        )
    if measured is not None:
        line = measured.line()
        found.append(f"## Measured\n\n{line[0].upper()}{line[1:]}.\n")
    return found


def _is_rope(part: Any) -> bool:
    """Whether it describes one rotary embedding; where layers differ, it is one of a mapping."""
    return isinstance(part, Mapping) and "rope_type" in part


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {_one_line(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _one_line(text: str) -> str:
    """A name or value in a heading or a table, whatever it holds."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _loading(model: CausalLM) -> str:
    base, changes = model.carried.name_or_path, model.carried.base_changes
    name = json.dumps(base)  # quoted, whatever a folder is called
    loading = f"base = AutoModelForCausalLM.from_pretrained({name})"
    imported, note = "AutoModelForCausalLM", ""
    rows = model.carried.vocabulary
    grown = "" if rows is None else f"\nbase.resize_token_embeddings({rows})"
    if changes:
        imported = "AutoConfig, AutoModelForCausalLM"
        loading = "\n".join(
            [
                f"config = AutoConfig.from_pretrained({name})",
                *(f"config.get_text_config().{key} = {value!r}" for key, value in changes.items()),
                f"base = AutoModelForCausalLM.from_pretrained({name}, config=config)",
            ]
        )
        note = (
            "\nThe base's position range was stretched for this adapter. Load the base with the\n"
            "values above, or its logits are not those of the training.\n"
        )
    return f"""## Loading

```python
from peft import PeftModel
from transformers import {imported}

{loading}{grown}
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
{note}"""
