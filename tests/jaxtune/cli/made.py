"""Folders that the programs are run on: a tiny model, and an adapter that changes it."""

import json
from pathlib import Path

from jaxtune import FastLanguageModel
from tests.base_install import write_model

ROWS = [{"text": f"w{n % 7} w{n % 5} w{n % 3} w{n % 11}"} for n in range(24)]


# w26 opens a user's turn, w27 the assistant's, </s> closes both.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ ' w26 ' if m['role'] == 'user' else ' w25 ' if m['role'] == 'system' else ' w27 ' }}"
    "{{ m['content'] }}{{ ' ' + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' w27 ' }}{% endif %}"
)


def make_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A random Llama with a word tokenizer and a chat template, or none."""
    folder.mkdir(parents=True)
    write_model(folder)
    (folder / "chat_template.jinja").write_text(template or "", encoding="utf-8")
    if template is None:
        (folder / "chat_template.jinja").unlink()
    return folder


def make_adapter(model: Path, folder: Path) -> Path:
    """An adapter over it that is not the identity, with the tokenizer."""
    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=None, load_in_4bit=False
    )
    loaded = FastLanguageModel.get_peft_model(loaded, r=4, init_lora_weights=False)
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(file: Path, rows: list[dict] = ROWS) -> Path:
    """Rows as JSON lines."""
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file
