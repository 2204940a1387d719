"""The messages of a conversation, read from a row: `role` and `content`, or ShareGPT's names."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.bad_rows import BadRowError

# ShareGPT's names of the roles, and what chat templates call them.
ROLES = {
    "human": "user",
    "user": "user",
    "input": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "output": "assistant",
    "system": "system",
}
_SHOWN = "[{'role': 'user', 'content': ...}, {'role': 'assistant', 'content': ...}]"

Message = dict[str, Any]


def read_messages(value: Any, column: str, number: int) -> list[Message]:
    """The messages that a row holds, each with `role` and `content`.

    Keys whose value is None are left out: `datasets` fills them in where rows differ. `from` and
    `value` are read as `role` and `content`, human and gpt as user and assistant. A content of
    parts, [{'type': 'text', 'text': ...}], becomes their text.

    Args:
      value: What stands in the column.
      column: For messages of errors.
      number: Of the row, for the same.

    Returns:
      New messages; the row is not changed.

    Raises:
      BadRowError: No list of messages, none, a role that is none, or no content.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadRowError(
            f"the column `{column}` must hold a list of messages, {_SHOWN}; row {number} holds "
            f"{type(value).__name__}."
        )
    if not value:
        raise BadRowError(
            f"a conversation must have at least one message; the column `{column}` of row "
            f"{number} holds none. Leave such rows out, for example by dataset.filter(...)."
        )
    return [
        _message(entry, f"message {place} of `{column}` in row {number}")
        for place, entry in enumerate(value)
    ]


def _message(entry: Any, where: str) -> Message:
    if not isinstance(entry, Mapping):
        raise BadRowError(
            f"a message must be a mapping with `role` and `content`; {where} is "
            f"{type(entry).__name__}. Pass messages such as {_SHOWN}."
        )
    message = {key: value for key, value in entry.items() if value is not None}
    if "role" not in message and "from" in message:
        message["role"] = _sharegpt_role(message.pop("from"), where)
        if "value" in message:
            message["content"] = message.pop("value")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise BadRowError(
            f"a message must have a `role`; {where} has {_short(entry)}. Name it 'user', "
            "'assistant', 'system' or what the chat template knows."
        )
    if "content" in message:
        message["content"] = _text(message["content"], where)
    elif "tool_calls" not in message:
        raise BadRowError(
            f"a message must have a `content` that is text; {where} has {_short(entry)}."
        )
    return message


def _sharegpt_role(role: Any, where: str) -> str:
    if role not in ROLES:
        raise BadRowError(
            f"the sender (`from`) of a message must be one of {sorted(ROLES)}; {where} is from "
            f"{role!r}. Rename it, or give messages with `role` and `content`, whose roles are "
            "the chat template's business."
        )
    return ROLES[role]


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    raise BadRowError(
        "the `content` of a message must be text, or a list of {'type': 'text', 'text': ...}; "
        f"{where} holds {_short(content)}."
    )


def _short(value: Any) -> str:
    shown = repr(dict(value) if isinstance(value, Mapping) else value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
