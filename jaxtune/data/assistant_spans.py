"""Which characters of a rendered conversation the assistant wrote.

A turn begins where the prompt ends that a model would be given for it, and ends with what closes
it: its end-of-turn token is learned. Where the template says so itself (`{% generation %}`), its
word counts. Else by rendering, and what is found is checked, never guessed:

1. The messages before the turn, with the generation prompt, must be a prefix of the messages up to
   and with the turn, and those of the whole text: the turn is the difference.
2. Templates that render earlier turns by what follows them (Mistral's puts the system message in
   the last user message) have no such prefixes. There the turn's content is replaced by a mark
   that occurs nowhere else: what stands before and behind the mark must be as in the text, and
   what opens and closes a turn as in a conversation of one question and one answer.
3. Else the row is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.messages import Message
from jaxtune.data.rendering import ChatTemplate, Span, TemplateRefusal

# Of Unicode's private use area: no text has it, no template trims it.
MARK = "\ue0b5\ue0b6"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """What a template writes around the assistant's words, seen in one question and one answer.

    Attributes:
      opening: The generation prompt; empty where the template has none.
      gap: What stands between the opening and the words; space where there is no opening.
      closing: What follows the answer.
    """

    opening: str
    gap: str
    closing: str


def frame_of(template: ChatTemplate) -> Frame:
    """Probe the template.

    Args:
      template: Of the tokenizer.

    Returns:
      What it writes around an answer.

    Raises:
      TemplateRefusal: It does not render a question and its answer in order, or it writes a header
        for the answer that is no generation prompt: a model would have to write the header.
    """
    question = [{"role": "user", "content": "a"}]
    bare = template.render(question, {})
    prompt = template.render(question, {}, prompt=True)
    answered = [*question, {"role": "assistant", "content": MARK}]
    head, mark, closing = template.render(answered, {}).partition(MARK)
    if not mark or not prompt.startswith(bare) or not head.startswith(prompt):
        raise TemplateRefusal(
            f"for a question it writes {prompt!r:.80}, and before the answer {head!r:.80}, which "
            "does not go on from there"
        )
    opening, gap = prompt[len(bare) :], head[len(prompt) :]
    if not opening and gap.strip():
        raise TemplateRefusal(
            f"it writes {gap!r:.40} before an answer, and not where `add_generation_prompt` is set"
        )
    return Frame(opening=opening, gap=gap, closing=closing)


def assistant_spans(
    template: ChatTemplate,
    frame: Frame | None,
    messages: Sequence[Message],
    options: Mapping[str, Any],
    text: str,
) -> list[Span]:
    """The assistant's turns in the rendered text.

    Args:
      template: Of the tokenizer.
      frame: From `frame_of`; None: the template marks its turns itself.
      messages: The conversation.
      options: Passed to the template.
      text: The conversation, rendered.

    Returns:
      Half-open ranges of characters, in order; empty where there is no such turn.

    Raises:
      TemplateRefusal: A turn cannot be located in the text.
    """
    if frame is None:
        return template.marked(messages, options)
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    spans: list[Span] = []
    for place in turns:
        span = _by_prefixes(template, frame, messages, place, options, text)
        span = span or _by_mark(template, frame, messages, place, options, text)
        if span is None or (spans and span[0] < spans[-1][1]):
            raise TemplateRefusal(
                f"the assistant's turn in message {place} cannot be located in the text that the "
                "template makes"
            )
        spans.append(span)
    return spans


def _by_prefixes(
    template: ChatTemplate,
    frame: Frame,
    messages: Sequence[Message],
    place: int,
    options: Mapping[str, Any],
    text: str,
) -> Span | None:
    """Rule 1; None where it does not hold."""
    if not place:
        return None
    try:
        before = template.render(messages[:place], options, prompt=True)
        upto = template.render(messages[: place + 1], options)
    except TemplateRefusal:
        return None  # it may take the whole and not a part
    if not upto.startswith(before) or not text.startswith(upto):
        return None
    content = messages[place].get("content", "").strip()
    if not frame.opening and not upto[len(before) :].lstrip().startswith(content):
        return None  # without a generation prompt, a header would pass for the assistant's words
    return len(before), len(upto)


def _by_mark(
    template: ChatTemplate,
    frame: Frame,
    messages: Sequence[Message],
    place: int,
    options: Mapping[str, Any],
    text: str,
) -> Span | None:
    """Rule 2; None where it does not hold."""
    marked = [*messages[:place], {**messages[place], "content": MARK}, *messages[place + 1 :]]
    head, mark, tail = template.render(marked, options).partition(MARK)
    stop = len(text) - len(tail)
    if not mark or len(head) > stop or not text.startswith(head) or text[stop:] != tail:
        return None
    content = messages[place].get("content", "")
    if text[len(head) : stop].strip() != content.strip() or not tail.startswith(frame.closing):
        return None
    if head.endswith(frame.opening + frame.gap):
        start = len(head) - len(frame.gap)
    elif frame.opening and head.endswith(frame.opening):
        start = len(head)  # Qwen3 writes an empty thought into the last turn only
    else:
        return None
    return start, stop + len(frame.closing)
