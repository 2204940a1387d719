"""`get_chat_template`: a copy of a tokenizer with another chat template."""

import copy
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from transformers import AutoTokenizer

from jaxtune.data.rendering import ChatTemplate, TemplateRefusal
from jaxtune.data.template_texts import BY_NAME, EOS

# Unsloth's default of `mapping`: names as the templates have them.
_NAMES = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}
_STANDARD = tuple(_NAMES.items())
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


def get_chat_template(
    tokenizer: Any,
    chat_template: str | tuple[str, str] = "chatml",
    mapping: Mapping[str, str] | None = None,
    map_eos_token: bool = True,
    system_message: str | None = None,
    patch_saving: bool = True,
) -> Any:
    """A copy of the tokenizer with the chat template of a family, or one of your own.

    A tokenizer that carries its owner's template of the family keeps it. Else a short one of
    this library is set.

    Args:
      tokenizer: A transformers tokenizer; not changed.
      chat_template: A name such as "llama-3.1", "chatml" or "gemma", or a pair: a jinja template
        and its stop word, "eos_token" for EOS.
      mapping: Names that messages have, for example {"role": "from", "content": "value",
        "user": "human", "assistant": "gpt"}; the template then takes both names.
      map_eos_token: The stop word becomes EOS, so that generation ends there: as the token that
        it is in the vocabulary, or, where "chatml" or your own template names one that the
        vocabulary lacks, as the new name of EOS, with its id. The vocabulary does not grow.
      system_message: Put before conversations that have none of their own.
      patch_saving: True; the template is saved with the tokenizer.

    Returns:
      The copy.

    Raises:
      ValueError: An unknown name, a template that jinja cannot read, `mapping` with other keys,
        or a system message that the template does not take.
    """
    if patch_saving is not True:
        raise ValueError(
            "`patch_saving` must be True: a tokenizer is saved with its chat template; got "
            f"{patch_saving!r}. Leave it out."
        )
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(chat_template, str):
        family = _family(chat_template)
        text = own if isinstance(own, str) and family.fits(own) else family.text
        stop_word, renames = family.stop_word, family.renames_eos
    else:
        text, stop_word = _pair(chat_template)
        renames = True
    _check_syntax(text)
    names = {**_NAMES, **_checked_mapping(mapping)}
    text = _mapped(text, names, system_message)
    chosen = tokenizer
    if map_eos_token and stop_word not in (EOS, tokenizer.eos_token):
        chosen = _ending_with(tokenizer, stop_word, renames)
    chosen = copy.deepcopy(tokenizer) if chosen is tokenizer else chosen
    chosen.chat_template = text
    if system_message is not None:
        _check_system_message(chosen, system_message)
    return chosen


def _family(name: str) -> Any:
    if name.lower() not in BY_NAME:
        raise ValueError(
            f"`chat_template` must be one of {sorted(BY_NAME)}, or a pair (jinja template, stop "
            f"word); got {name!r:.60}."
        )
    return BY_NAME[name.lower()]


def _pair(given: Any) -> tuple[str, str]:
    if (
        not isinstance(given, tuple | list)
        or len(given) != 2
        or not all(isinstance(part, str) and part for part in given)
    ):
        raise ValueError(
            "`chat_template` must be a name, or a pair of texts (jinja template, stop word); got "
            f"{given!r:.60}. Pass (template, 'eos_token') if EOS closes a turn."
        )
    return given[0], given[1]


def _check_syntax(text: str) -> None:
    try:
        # `generation` is a tag of transformers, which has a parser of its own for it.
        bare = _GENERATION.sub("", text)
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(bare)
    except jinja2.TemplateError as error:
        raise ValueError(
            f"`chat_template` must be a jinja template; jinja says: {error}. Correct it."
        ) from error


def _checked_mapping(mapping: Mapping[str, str] | None) -> dict[str, str]:
    if mapping is None:
        return {}
    wrong = [key for key, value in mapping.items() if key not in _NAMES or not value]
    if wrong:
        raise ValueError(
            f"`mapping` must give names for {sorted(_NAMES)}; got {dict(mapping)}. Pass for "
            "example {'role': 'from', 'content': 'value', 'user': 'human', 'assistant': 'gpt'}."
        )
    return dict(mapping)


def _mapped(text: str, names: Mapping[str, str], system_message: str | None) -> str:
    """The template behind lines that give messages its names, and the system message.

    Names in the template itself are not replaced: they may stand in what it writes, too.
    """
    lines = []
    if tuple(names.items()) != _STANDARD:
        role, content = json.dumps(names["role"]), json.dumps(names["content"])
        roles = json.dumps({names["user"]: "user", names["assistant"]: "assistant"})
        lines.append(
            "{%- set renamed = namespace(messages=[]) %}{%- for message in messages %}"
            f"{{%- set role = message[{role}] if {role} in message else message['role'] %}}"
            f"{{%- set words = message[{content}] if {content} in message "
            "else message['content'] %}"
            "{%- set renamed.messages = renamed.messages "
            f"+ [dict(message, role={roles}.get(role, role), content=words)] %}}"
            "{%- endfor %}{%- set messages = renamed.messages %}"
        )
    if system_message is not None:
        lines.append(
            "{%- if messages[0]['role'] != 'system' %}"
            "{%- set messages = [{'role': 'system', 'content': "
            f"{json.dumps(system_message)}}}] + messages %}}{{%- endif %}}"
        )
    return "".join(lines) + text


def _check_system_message(tokenizer: Any, system_message: str) -> None:
    try:
        text = ChatTemplate(tokenizer).render([{"role": "user", "content": "a"}], {})
    except TemplateRefusal as error:
        raise ValueError(
            f"`system_message` needs a chat template that takes one; this one says: {error}. "
            "Leave it out, and put the words into the first question."
        ) from error
    if system_message.strip() not in text:
        raise ValueError(
            "`system_message` needs a chat template that writes it; this one leaves it out. Leave "
            "it out, and put the words into the first question."
        )


def _ending_with(tokenizer: Any, stop_word: str, renames: bool) -> Any:
    """A copy whose EOS is the stop word; the tokenizer itself if there can be none."""
    if stop_word in tokenizer.get_vocab():
        changed = copy.deepcopy(tokenizer)
        changed.eos_token = stop_word
        return changed
    if not renames or tokenizer.eos_token is None:
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            renamed = _renamed(content, tokenizer.eos_token, stop_word)
            file.write_text(json.dumps(renamed, ensure_ascii=False), encoding="utf-8")
        changed: Any = AutoTokenizer.from_pretrained(folder)
    changed.name_or_path = tokenizer.name_or_path
    return changed


def _renamed(value: Any, old: str, new: str) -> Any:
    """JSON in which each text that equals `old`, keys too, is `new`."""
    if isinstance(value, dict):
        return {_renamed(key, old, new): _renamed(held, old, new) for key, held in value.items()}
    if isinstance(value, list):
        return [_renamed(held, old, new) for held in value]
    return new if value == old else value
