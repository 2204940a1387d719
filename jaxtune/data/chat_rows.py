"""Rows of messages, or of a prompt and its completion, to token ids and the labels that count."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.data.assistant_spans import Frame, assistant_spans, frame_of
from jaxtune.data.batch import IGNORE
from jaxtune.data.dataset import row_batches
from jaxtune.data.encode import encode, progress_bar, tokenizer_threads
from jaxtune.data.messages import read_messages
from jaxtune.data.rendering import ChatTemplate, Span, TemplateRefusal, template_options
from jaxtune.data.rows import EVERY_TOKEN
from jaxtune.data.special_tokens import with_specials

PAIR = ("prompt", "completion")
_OPTIONS = ("tools", "chat_template_kwargs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
    """The rows of a data set before they are cut.

    Attributes:
      rows: Token ids of each, int32.
      labels: Aligned with the rows, -100 ignored; None: the ids are the labels.
      eos_appended: Rows that did not end with EOS and got one.
      learned: What the labels name, in words.
    """

    rows: list[np.ndarray]
    labels: list[np.ndarray] | None
    eos_appended: int
    learned: str


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


def chat_rows(
    dataset: Any,
    tokenizer: Any,
    columns: tuple[str, ...],
    *,
    completion_only: bool = False,
    assistant_only: bool = False,
    threads: int | None = None,
) -> Labelled:
    """Tokenise a data set as TRL does.

    Messages are rendered by the tokenizer's template and get no special tokens besides. A prompt
    and a completion that are texts are joined, and get the tokenizer's special tokens and EOS.

    Args:
      dataset: One that `check_dataset` let pass.
      tokenizer: A transformers tokenizer; not changed.
      columns: `PAIR`, or the one that holds messages.
      completion_only: Learn the completion alone: the tokens from where those of the prompt and
        those of the whole row part.
      assistant_only: Learn what the assistant wrote, its end-of-turn tokens included.
      threads: Tokenizer threads; None leaves it to the tokenizer.

    Returns:
      A row for each row of the data set.

    Raises:
      ValueError: A row lacks a column or holds something else, the template is missing, refuses
        the messages, or does not tell where a turn of the assistant stands.
    """
    maker = _Texts(tokenizer, columns, completion_only, assistant_only)
    rows, labels, appended, parted = [], [], 0, 0
    with tokenizer_threads(tokenizer, threads) as pool, progress_bar(len(dataset)) as bar:
        for start, batch in row_batches(dataset, (*columns, *_OPTIONS)):
            texts = [maker.row(row, number) for number, row in enumerate(batch, start)]
            for row, ids, prompt, offsets in _encoded(tokenizer, texts, pool):
                whole, added = (ids, False) if row.chat else with_specials(ids, tokenizer)
                appended += added
                rows.append(np.asarray(whole, np.int32))
                learned = np.ones(len(whole), bool)
                if prompt is not None:
                    known = with_specials(prompt, tokenizer, eos=False)[0]
                    common = _common(known, whole)
                    parted += common < len(known)
                    learned[:common] = False
                if row.spans is not None:
                    learned &= _overlaps(offsets, row.spans)
                labels.append(np.where(learned, rows[-1], np.int32(IGNORE)))
            bar.update(len(batch))
    if parted:
        warnings.warn(
            f"in {parted} of {len(rows)} rows the tokens of the prompt alone are not those that "
            "the row starts with; what is learned starts where they part. End prompts at a "
            "token's end, for example with no space.",
            stacklevel=2,
        )
    chosen = ["the completions"] * completion_only + ["the assistant's turns"] * assistant_only
    return Labelled(
        rows=rows,
        labels=labels if chosen else None,
        eos_appended=appended,
        learned=" within ".join(reversed(chosen)) or EVERY_TOKEN,
    )


class _Texts:
    """Makes the texts of rows; the template is probed once."""

    def __init__(
        self, tokenizer: Any, columns: tuple[str, ...], completion_only: bool, assistant_only: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.columns = columns
        self.completion_only = completion_only
        self.assistant_only = assistant_only
        self._template: ChatTemplate | None = None
        self._frame: Frame | None = None

    def row(self, row: Mapping[str, Any], number: int) -> _Row:
        """The text of a row, or an error that names it."""
        missing = [name for name in self.columns if name not in row]
        if missing:
            raise ValueError(
                f"every row must have the columns {list(self.columns)}; row {number} has "
                f"{sorted(row)}. Add `{missing[0]}`, or leave the row out."
            )
        values = [row[name] for name in self.columns]
        if self.columns == PAIR and all(isinstance(value, str) for value in values):
            return self._plain(*values, number=number)
        kinds = [type(value).__name__ for value in values]
        if self.columns == PAIR and (None in values or str in map(type, values)):
            raise ValueError(
                "`prompt` and `completion` must both be text, or both lists of messages; row "
                f"{number} holds {kinds[0]} and {kinds[1]}."
            )
        options = template_options(row, number)
        parts = [read_messages(row[name], name, number) for name in self.columns]
        messages = [message for part in parts for message in part]
        try:
            template = self._ready()
            text = template.render(messages, options)
            prompt, spans = None, None
            if self.completion_only:
                prompt = template.render(parts[0], options, prompt=True)
            if self.assistant_only:
                spans = assistant_spans(template, self._frame, messages, options, text)
        except TemplateRefusal as error:
            raise ValueError(
                f"the tokenizer's chat template must take every row; row {number}: {error}. "
                "Change or leave out the row, or choose another template by get_chat_template."
            ) from error
        return _Row(text=text, prompt=prompt, spans=spans)

    def _plain(self, prompt: str, completion: str, *, number: int) -> _Row:
        if self.assistant_only:
            raise ValueError(
                "`assistant_only_loss` needs rows of messages; `prompt` and `completion` of row "
                f"{number} are text. Leave it out: completion_only_loss learns the completion."
            )
        only = prompt if self.completion_only else None
        return _Row(text=prompt + completion, prompt=only, chat=False)

    def _ready(self) -> ChatTemplate:
        if self._template is None:
            template = ChatTemplate(self.tokenizer)
            if self.assistant_only and not template.marks_turns:
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
