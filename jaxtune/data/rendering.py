"""A tokenizer's chat template: messages to text, in jinja's sandbox."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from jaxtune.data.bad_rows import BadRowError
from jaxtune.data.messages import Message

Span = tuple[int, int]
# Of templates; the sandbox answers a range that is too long by OverflowError.
_FAILURES = (jinja2.TemplateError, TypeError, LookupError, ValueError, OverflowError)
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateRefusal(ValueError):
    """The chat template cannot render these messages; the message says why."""


class ChatTemplate:
    """The template that a tokenizer carries.

    Attributes:
      marks_turns: The template says itself what the assistant writes, by `{% generation %}`.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Check that there is one.

        Args:
          tokenizer: A transformers tokenizer; not changed.

        Raises:
          ValueError: It has no chat template.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "rows of messages need a chat template; the tokenizer has none (a base model's "
                "seldom does). Pass the tokenizer that get_chat_template(tokenizer, "
                "chat_template='chatml') returns, or another of its names."
            )
        self._tokenizer = tokenizer
        self._source = tokenizer.get_chat_template()
        self.marks_turns = _GENERATION.search(self._source) is not None

    def names(self, role: str) -> bool:
        """Whether a role stands in the template as a text of its own."""
        return f"'{role}'" in self._source or f'"{role}"' in self._source

    def render(
        self, messages: Sequence[Message], options: Mapping[str, Any], *, prompt: bool = False
    ) -> str:
        """The text of the messages.

        Args:
          messages: At least one.
          options: What else the template reads, `tools` for example.
          prompt: Add what opens the assistant's answer.

        Returns:
          The text, with BOS if the template writes it.

        Raises:
          TemplateRefusal: The template raised.
        """
        return self._render(messages, options, prompt=prompt)[0]

    def marked(self, messages: Sequence[Message], options: Mapping[str, Any]) -> list[Span]:
        """The characters of the rendered text that stand inside `{% generation %}`.

        Args:
          messages: At least one.
          options: See `render`.

        Returns:
          Half-open ranges, in order.

        Raises:
          TemplateRefusal: The template raised.
        """
        return self._render(messages, options, marks=True)[1]

    def _render(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        *,
        prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[Span]]:
        tools = options.get("tools")
        more = {name: value for name, value in options.items() if name != "tools"}
        try:
            # What transformers' `apply_chat_template` does before it tokenises.
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self._tokenizer.get_chat_template(None, tools),
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **{**self._tokenizer.special_tokens_map, **more},
            )
        except _FAILURES as error:
            raise TemplateRefusal(f"{type(error).__name__}: {error!s:.200}") from error
        return texts[0], [(int(start), int(stop)) for start, stop in spans[0]] if marks else []


def template_options(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a row passes to its template besides messages: `tools`, `chat_template_kwargs`.

    Args:
      row: A row of the data set.
      number: Of the row, for messages of errors.

    Returns:
      Keyword arguments of the template.

    Raises:
      BadRowError: `tools` is text that is no JSON, or the arguments are no mapping.
    """
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools else None
        except ValueError as error:
            raise BadRowError(
                f"the column `tools` must hold a list of tools, or its JSON; row {number} holds "
                f"{tools!r:.60}."
            ) from error
    more = row.get("chat_template_kwargs") or {}
    if not isinstance(more, Mapping):
        raise BadRowError(
            "the column `chat_template_kwargs` must hold a mapping; row "
            f"{number} holds {type(more).__name__}."
        )
    return {**({"tools": tools} if tools else {}), **more}
