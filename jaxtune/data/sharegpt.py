"""Conversations of other names and shapes, made into messages before training."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.data.dataset import check_dataset, columns_of

_SYSTEM = ("system",)
_USER = ("user", "human", "input")
_ASSISTANT = ("gpt", "assistant", "output")
_COLUMN = "conversations"
# Rows that are looked at to tell which key of a message names its sender.
_SAMPLE = 10
_OPTIONAL = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_FIELD = re.compile(r"\{(\w+)\}")


def standardize_data_formats(
    dataset: Any,
    tokenizer: Any = None,
    aliases_for_system: Iterable[str] = _SYSTEM,
    aliases_for_user: Iterable[str] = _USER,
    aliases_for_assistant: Iterable[str] = _ASSISTANT,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Any:
    """Give the messages of the column `conversations` the names `role` and `content`.

    Which key names the sender is told from the first ten rows: the one with fewer values.

    Args:
      dataset: A `datasets.Dataset` or a list of mappings; not changed. Without the column it is
        returned as it is.
      tokenizer: None, or a tokenizer: contents are text. A processor of images is refused.
      aliases_for_system: Names of the system's role.
      aliases_for_user: Names of the user's role.
      aliases_for_assistant: Names of the assistant's role.
      batch_size: Rows at a time, of a `datasets.Dataset`.
      num_proc: Processes, of a `datasets.Dataset`; None: this one.

    Returns:
      The same kind of data set.

    Raises:
      TypeError: A role that is none of the names; or no data set.
      ValueError: Messages that have not the same two keys, or a processor.
    """
    if hasattr(tokenizer, "image_processor"):
        raise ValueError(
            "`tokenizer` must be one of text; got a processor, whose messages hold images too. "
            "Pass processor.tokenizer."
        )
    check_dataset(dataset)
    if _COLUMN not in columns_of(dataset):
        return dataset
    role_key, content_key = _keys(dataset[:_SAMPLE])
    roles = {
        alias: role
        for role, aliases in (
            ("system", aliases_for_system),
            ("user", aliases_for_user),
            ("assistant", aliases_for_assistant),
        )
        for alias in aliases
    }

    def convert(conversation: Any, number: int) -> list[dict[str, str]]:
        messages = []
        for message in _checked_list(conversation, number):
            role = message.get(role_key) if isinstance(message, Mapping) else None
            if role not in roles or not isinstance(message.get(content_key), str):
                raise TypeError(
                    f"a message must have `{role_key}`, one of {sorted(roles)}, and `{content_key}`"
                    f", a text; row {number} has {message!r:.80}. Add the name of the role to "
                    "aliases_for_user= or another, or leave the row out."
                )
            messages.append({"role": roles[role], "content": message[content_key]})
        return messages

    return _with_column(dataset, convert, batch_size, num_proc)


def standardize_sharegpt(
    dataset: Any,
    tokenizer: Any = None,
    aliases_for_system: Iterable[str] = _SYSTEM,
    aliases_for_user: Iterable[str] = _USER,
    aliases_for_assistant: Iterable[str] = _ASSISTANT,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Any:
    """The older name of `standardize_data_formats`.

    Args:
      dataset: See there, as all others.
      tokenizer: See there.
      aliases_for_system: See there.
      aliases_for_user: See there.
      aliases_for_assistant: See there.
      batch_size: See there.
      num_proc: See there.

    Returns:
      The same kind of data set.
    """
    return standardize_data_formats(
        dataset,
        tokenizer,
        aliases_for_system,
        aliases_for_user,
        aliases_for_assistant,
        batch_size,
        num_proc,
    )


def to_sharegpt(
    dataset: Any,
    merged_prompt: str = "",
    merged_column_name: str = "instruction",
    output_column_name: str = "output",
    remove_unused_columns: bool = True,
    conversation_extension: int = 1,
    random_state: int = 3407,
) -> Any:
    r"""Make conversations, in ShareGPT's names, of columns that hold a question and its answer.

    Args:
      dataset: A `datasets.Dataset` or a list of mappings; not changed.
      merged_prompt: The question with columns in braces, "{instruction}[[\nInput: {input}]]";
        what stands in double brackets is left out of rows where one of its columns is empty. "":
        the column `merged_column_name` is the question.
      merged_column_name: The column of the question.
      output_column_name: The column of the answer.
      remove_unused_columns: Keep `conversations` alone.
      conversation_extension: Rows that are joined to a conversation: the row, and others drawn
        by shuffling, one each.
      random_state: Of the shuffling.

    Returns:
      The same kind of data set, with the column `conversations`.

    Raises:
      ValueError: A column is missing or holds no text, or fewer than one row a conversation.
      TypeError: No data set.
    """
    check_dataset(dataset)
    if conversation_extension < 1:
        raise ValueError(
            f"`conversation_extension` must be at least 1; got {conversation_extension}."
        )
    question = merged_prompt or f"{{{merged_column_name}}}"
    needed = [*_FIELD.findall(question), output_column_name]
    missing = [name for name in needed if name not in columns_of(dataset)]
    if missing:
        raise ValueError(
            f"the columns {needed} must be there; the data set has {columns_of(dataset)}. Name "
            "others in merged_prompt=, merged_column_name= or output_column_name=."
        )
    single = []
    for number in range(len(dataset)):
        row = dataset[number]
        answer = row.get(output_column_name)
        if not isinstance(answer, str):
            raise ValueError(
                f"the column `{output_column_name}` must hold text; row {number} holds "
                f"{type(answer).__name__}. Leave such rows out."
            )
        asked = _filled(question, row, number)
        single.append([{"from": "human", "value": asked}, {"from": "gpt", "value": answer}])
    joined = [list(turns) for turns in single]
    for round_ in range(1, conversation_extension):
        # The order in which `datasets` shuffles by a seed.
        order = np.random.default_rng(random_state + round_).permutation(len(single))
        for turns, other in zip(joined, order, strict=True):
            turns.extend(single[other])
    if hasattr(dataset, "select_columns"):
        kept = [name for name in dataset.column_names if name != _COLUMN]
        if remove_unused_columns or not kept:
            return type(dataset).from_dict({_COLUMN: joined})
        return dataset.select_columns(kept).add_column(_COLUMN, joined)
    return [
        {**({} if remove_unused_columns else row), _COLUMN: turns}
        for row, turns in zip(dataset, joined, strict=True)
    ]


def _keys(sample: Any) -> tuple[str, str]:
    """Which key of a message names its sender, and which holds its words."""
    conversations = (
        sample[_COLUMN] if isinstance(sample, Mapping) else [row.get(_COLUMN) for row in sample]
    )
    seen: dict[str, set[Any]] = {}
    for number, conversation in enumerate(conversations):
        for message in _checked_list(conversation, number):
            for key, value in message.items() if isinstance(message, Mapping) else ():
                seen.setdefault(key, set()).add(str(value))
    for known in (("role", "content"), ("from", "value")):
        if set(known) <= set(seen):
            return known
    if len(seen) != 2:
        raise ValueError(
            "the messages of `conversations` must have two keys, of the sender and of the words; "
            f"the first rows have {sorted(seen)}. Make them 'role' and 'content' by map(...)."
        )
    first, second = sorted(seen, key=lambda key: len(seen[key]))
    return first, second


def _checked_list(conversation: Any, number: int) -> Sequence[Any]:
    if not isinstance(conversation, Sequence) or isinstance(conversation, str):
        raise ValueError(
            f"the column `conversations` must hold a list of messages; row {number} holds "
            f"{type(conversation).__name__}."
        )
    return conversation


def _filled(question: str, row: Mapping[str, Any], number: int) -> str:
    """The question of a row."""

    def fill(text: str) -> str:
        return _FIELD.sub(lambda match: _value(row, match.group(1), number), text)

    def optional(match: re.Match[str]) -> str:
        part = match.group(1)
        return fill(part) if all(row.get(name) for name in _FIELD.findall(part)) else ""

    # Values may hold brackets of their own: what is put in is not looked at again.
    pieces, end = [], 0
    for match in _OPTIONAL.finditer(question):
        pieces += [fill(question[end : match.start()]), optional(match)]
        end = match.end()
    return "".join([*pieces, fill(question[end:])])


def _value(row: Mapping[str, Any], name: str, number: int) -> str:
    value = row.get(name)
    if value is None or isinstance(value, list | dict):
        raise ValueError(
            f"the column `{name}` must hold text; row {number} holds {type(value).__name__}. Put "
            "it in double brackets, [[...{" + name + "}]], to leave it out where it is empty."
        )
    return str(value)


def _with_column(
    dataset: Any,
    convert: Callable[[Any, int], list[dict[str, str]]],
    batch_size: int,
    num_proc: int | None,
) -> Any:
    """The data set with its conversations converted."""
    if not hasattr(dataset, "map"):
        return [
            {**row, _COLUMN: convert(row.get(_COLUMN), number)}
            for number, row in enumerate(dataset)
        ]

    def batch(columns: Mapping[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
        pairs = zip(columns[_COLUMN], numbers, strict=True)
        return {_COLUMN: [convert(conversation, number) for conversation, number in pairs]}

    return dataset.map(
        batch,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        desc="jaxtune: standardising",
    )
