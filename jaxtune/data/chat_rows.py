"""Rows of messages, or of a prompt and its completion, to token ids and the labels that count."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from jaxtune.data.assistant_spans import Frame, assistant_spans, frame_of
from jaxtune.data.bad_rows import BadRowError, BadRows, good_rows
from jaxtune.data.batch import IGNORE
from jaxtune.data.encode import encode
from jaxtune.data.encoded import Encoded
from jaxtune.data.messages import Message, read_messages
from jaxtune.data.rendering import ChatTemplate, Span, TemplateRefusal, template_options
from jaxtune.data.rows import EVERY_TOKEN
from jaxtune.data.special_tokens import with_specials

PAIR = ("prompt", "completion")
_OPTIONS = ("tools", "chat_template_kwargs")
# Roles that templates are written for, whether or not this one names them.
_ROLES = frozenset(
    {"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
    """A row as text.

    Attributes:
      text: All of it.
      prompt: Its head that is not learned; None: there is none.
      spans: The characters that the assistant wrote; None: not asked for.
      chat: The text is a rendered template: it has its special tokens.
    """

    text: str
    prompt: str | None = None
    spans: list[Span] | None = None
    chat: bool = True


class ChatRows:
    """Rows of messages, or of a prompt and a completion, to tokens, as TRL does.

    Messages are rendered by the tokenizer's template and get no special tokens besides. A prompt
    and a completion that are texts are joined, and get the tokenizer's special tokens and EOS.

    Attributes:
      columns: Those that are read.
      values: None: Python's own.
      learned: What the labels name, in words.
      parted: Rows so far whose prompt has other tokens alone than in the row.
    """

    values: str | None = None

    def __init__(
        self, tokenizer: Any, columns: tuple[str, ...], completion_only: bool, assistant_only: bool
    ) -> None:
        """Render nothing yet; the template is probed at the first row of messages.

        Args:
          tokenizer: A transformers tokenizer; not changed.
          columns: `PAIR`, or the one that holds messages.
          completion_only: Learn the completion alone: the tokens from where those of the prompt
            and those of the whole row part.
          assistant_only: Learn what the assistant wrote, its end-of-turn tokens included.
        """
        self.columns: Collection[str] | None = (*columns, *_OPTIONS)
        chosen = ["the completions"] * completion_only + ["the assistant's turns"] * assistant_only
        self.learned = " within ".join(reversed(chosen)) or EVERY_TOKEN
        self.parted = 0
        self._tokenizer = tokenizer
        self._read = columns
        self._masked = bool(chosen)
        self._completion_only = completion_only
        self._assistant_only = assistant_only
        self._template: ChatTemplate | None = None
        self._frame: Frame | None = None

    def encode(
        self,
        rows: Sequence[Any],
        first: int,
        bad: BadRows,
        pool: Executor | None = None,
    ) -> Encoded:
        """Ids and labels of some rows.

        Args:
          rows: Of the data set.
          first: Number of the first.
          bad: Takes those that lack a column or hold something else, that the template refuses, or
            in which it does not tell where a turn of the assistant stands.
          pool: From `tokenizer_threads`.

        Returns:
          A row for each good one.

        Raises:
          ValueError: The template is missing, or tells no turns.
        """
        texts = good_rows(rows, first, bad, self.row)
        if not texts or bad.refused:
            return Encoded(labels=[] if self._masked else None)
        made = Encoded(numbers=[number for number, _ in texts], labels=[])
        appended = 0
        for row, ids, prompt, offsets in _encoded(self._tokenizer, [t for _, t in texts], pool):
            whole, added = (ids, False) if row.chat else with_specials(ids, self._tokenizer)
            appended += added
            made.rows.append(np.asarray(whole, np.int32))
            learned = np.ones(len(whole), bool)
            if prompt is not None:
                known = with_specials(prompt, self._tokenizer, eos=False)[0]
                common = _common(known, whole)
                self.parted += common < len(known)
                learned[:common] = False
            if row.spans is not None:
                learned &= _overlaps(offsets, row.spans)
            if made.labels is not None:
                made.labels.append(np.where(learned, made.rows[-1], np.int32(IGNORE)))
        labels = made.labels if self._masked else None
        return dataclasses.replace(made, labels=labels, eos_appended=appended)

    def row(self, row: Mapping[str, Any], number: int) -> _Row:
        """The text of a row, or an error that names it."""
        missing = [name for name in self._read if name not in row]
        if missing:
            raise BadRowError(
                f"every row must have the columns {list(self._read)}; row {number} has "
                f"{sorted(row)}. Add `{missing[0]}`, or leave the row out."
            )
        values = [row[name] for name in self._read]
        if self._read == PAIR and all(isinstance(value, str) for value in values):
            return self._plain(*values, number=number)
        kinds = [type(value).__name__ for value in values]
        if self._read == PAIR and (None in values or str in map(type, values)):
            raise BadRowError(
                "`prompt` and `completion` must both be text, or both lists of messages; row "
                f"{number} holds {kinds[0]} and {kinds[1]}."
            )
        options = template_options(row, number)
        parts = [read_messages(row[name], name, number) for name in self._read]
        messages = [message for part in parts for message in part]
        try:
            template = self._ready()
            self._check_roles(messages, template, number)
            text = template.render(messages, options)
            prompt, spans = None, None
            if self._completion_only:
                prompt = template.render(parts[0], options, prompt=True)
            if self._assistant_only:
                spans = assistant_spans(template, self._frame, messages, options, text)
        except TemplateRefusal as error:
            raise BadRowError(
                f"the tokenizer's chat template must take every row; row {number}: {error}. "
                "Change or leave out the row, or choose another template by get_chat_template."
            ) from error
        return _Row(text=text, prompt=prompt, spans=spans)

    def _plain(self, prompt: str, completion: str, *, number: int) -> _Row:
        if self._assistant_only:
            raise BadRowError(
                "`assistant_only_loss` needs rows of messages; `prompt` and `completion` of row "
                f"{number} are text. Leave it out: completion_only_loss learns the completion."
            )
        if not (prompt + completion).strip():
            raise BadRowError(
                f"`prompt` and `completion` must hold text; both are empty in row {number}."
            )
        only = prompt if self._completion_only else None
        return _Row(text=prompt + completion, prompt=only, chat=False)

    def _check_roles(
        self, messages: Sequence[Message], template: ChatTemplate, number: int
    ) -> None:
        """Refuse a role that is misspelt: many templates write any, or leave its turn out."""
        for message in messages:
            role = message["role"]
            if role not in _ROLES and not template.names(role):
                raise BadRowError(
                    f"the `role` of a message must be one of {sorted(_ROLES)}, or be named in the "
                    f"chat template; row {number} has {role!r}. Rename it."
                )

    def _ready(self) -> ChatTemplate:
        if self._template is None:
            template = ChatTemplate(self._tokenizer)
            if self._assistant_only and not template.marks_turns:
                self._frame = _checked_frame(template)
            self._template = template
        return self._template


def _checked_frame(template: ChatTemplate) -> Frame:
    try:
        return frame_of(template)
    except TemplateRefusal as error:
        raise ValueError(
            "`assistant_only_loss` must know where the assistant's turns stand, and the "
            f"tokenizer's chat template does not tell: {error}. Mark them in the template by "
            "{% generation %} ... {% endgeneration %}, let it write the header where "
            "`add_generation_prompt` is set, or use train_on_responses_only with its markers."
        ) from error


def _encoded(
    tokenizer: Any, texts: Sequence[_Row], pool: Any
) -> Iterator[tuple[_Row, list[int], list[int] | None, list[Span]]]:
    """Each row with its ids, those of its prompt and the characters of its tokens, in order."""
    for chat in (True, False):
        chosen = [row for row in texts if row.chat == chat]
        if len(chosen) not in (0, len(texts)):
            # Ids must come in the order of the rows, and the two kinds are encoded differently.
            for row in texts:
                yield from _encoded(tokenizer, [row], pool)
            return
    chat = texts[0].chat
    offsets = any(row.spans is not None for row in texts)
    whole = encode(tokenizer, [row.text for row in texts], pool, specials=not chat, offsets=offsets)
    heads = [row.prompt for row in texts if row.prompt is not None]
    prompts: Iterator[list[int]] = iter(
        encode(tokenizer, heads, pool, specials=not chat)["input_ids"] if heads else ()
    )
    places = whole["offset_mapping"] if offsets else [[]] * len(texts)
    for row, ids, where in zip(texts, whole["input_ids"], places, strict=True):
        yield row, ids, None if row.prompt is None else next(prompts), where


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that both start with."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def _overlaps(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """True for each token that stands for a character of a span, as in transformers."""
    places = np.asarray(offsets, np.int64).reshape(-1, 2)
    learned = np.zeros(len(places), bool)
    for start, stop in spans:
        learned |= (places[:, 0] < stop) & (places[:, 1] > start)
    return learned
