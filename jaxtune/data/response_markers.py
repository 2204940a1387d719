"""Answers in rows of tokens, found by the markers that open a question and an answer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtune.data.assistant_spans import MARK
from jaxtune.data.batch import IGNORE
from jaxtune.data.encode import encode
from jaxtune.data.encoded import Encoded
from jaxtune.data.rendering import ChatTemplate, TemplateRefusal
from jaxtune.data.rows import TokenizedRows, check_some_left, cut_rows

# What may stand before and behind a marker, where its tokens depend on that.
_BEFORE = ("", "\n", " ", "a", "a\n")
_BEHIND = ("", "a", " a", "\n", "\na")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Markers:
    """The texts that open a turn.

    Attributes:
      instruction: Of the user.
      response: Of the assistant; what follows it is learned, up to the next instruction.
    """

    instruction: str
    response: str


def probed_markers(tokenizer: Any) -> Markers:
    """The markers that the tokenizer's chat template writes, seen in two questions and answers.

    Args:
      tokenizer: A transformers tokenizer; not changed.

    Returns:
      The markers, without a space at their end, which belongs to the word after it.

    Raises:
      ValueError: There is no template, or it does not write the two turns alike.
    """
    template = ChatTemplate(tokenizer)
    marks = [f"{MARK}{number}" for number in range(4)]
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": mark}
        for place, mark in enumerate(marks)
    ]
    try:
        text = template.render(turns, {})
        answered = template.render(turns[:2], {})
        asked = template.render(turns[:1], {})
        prompt = template.render(turns[:1], {}, prompt=True)
    except TemplateRefusal as error:
        raise _unmarked(str(error)) from error
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise _unmarked(f"it does not write the messages {turns}")
        parts.append(part)
    closing = answered.partition(marks[1])[2]
    opening = prompt[len(asked) :] if prompt.startswith(asked) else ""
    answer, question = parts[1], parts[2]
    response = opening if opening and opening in answer else answer
    instruction = question.removeprefix(closing) if closing.strip() else question
    markers = Markers(instruction=instruction.strip(" "), response=response.strip(" "))
    if not markers.instruction.strip() or not markers.response.strip() or parts[3] != answer:
        raise _unmarked(f"it writes {answer!r} before an answer and {question!r} after one")
    return markers


def _unmarked(reason: str) -> ValueError:
    return ValueError(
        "the markers must be seen in the tokenizer's chat template, and are not: "
        f"{reason}. Pass instruction_part= and response_part=, the texts that open a turn."
    )


class ResponseMask:
    """Labels of rows in which answers are found by markers."""

    def __init__(
        self, tokenizer: Any, markers: Markers, *, exact: bool = True, last_only: bool = False
    ) -> None:
        """Tokenise the markers.

        Args:
          tokenizer: That of the rows; not changed.
          markers: The texts that open turns.
          exact: Their tokens are those of the markers alone; else also those that they have among
            other characters, where they differ.
          last_only: Learn the last answer of a row alone.

        Raises:
          ValueError: A marker has no tokens.
        """
        self.markers = markers
        self.last_only = last_only
        self.instruction = _variants(tokenizer, "instruction_part", markers.instruction, exact)
        self.response = _variants(tokenizer, "response_part", markers.response, exact)

    def labels(
        self, ids: np.ndarray, labels: np.ndarray | None = None, *, cut: bool = False
    ) -> np.ndarray:
        """The labels of a row.

        Args:
          ids: Its tokens, [T].
          labels: Those it has; what they ignore stays ignored. None: the ids.
          cut: The row may have been cut inside an instruction marker.

        Returns:
          [T] int32, -100 outside answers.
        """
        starts = sorted({at + size for at, size in _places(ids, self.response)})
        stops = sorted({at for at, _ in _places(ids, self.instruction)})
        if cut:
            stops += _half_place(ids, self.instruction)
        learned = np.zeros(len(ids), bool)
        if self.last_only:
            starts = starts[-1:]
        for start in starts:
            learned[start : next((stop for stop in stops if stop >= start), len(ids))] = True
        return np.where(learned, ids if labels is None else labels, IGNORE).astype(np.int32)

    def apply(self, rows: TokenizedRows, max_length: int) -> TokenizedRows:
        """The rows with answers as labels; rows without one are left out.

        Args:
          rows: Tokenised, with labels or without.
          max_length: At which they were cut, for messages of errors.

        Returns:
          New rows, and the counts of both passes.

        Raises:
          ValueError: A marker occurs in no row, or no answer is left.
        """
        self._check_found(rows, max_length)
        masked = self.masked(rows, max_length)
        check_some_left(masked, self._encoded(rows, max_length), max_length)
        return masked

    def masked(self, rows: TokenizedRows, max_length: int) -> TokenizedRows:
        """The same of some rows of many: that none is left is no error.

        Args:
          rows: Tokenised.
          max_length: At which they were cut, tokens.

        Returns:
          New rows.
        """
        cut = cut_rows(self._encoded(rows, max_length), max_length)
        which = "the last answer, after" if self.last_only else "what follows"
        words = f"{which} {self.markers.response!r}, up to {self.markers.instruction!r}"
        return dataclasses.replace(
            rows,
            rows=cut.rows,
            labels=cut.labels,
            dropped=rows.dropped + cut.dropped,
            learned=words,
        )

    def _encoded(self, rows: TokenizedRows, max_length: int) -> Encoded:
        given = rows.labels if rows.labels is not None else [None] * len(rows.rows)
        labels = [
            self.labels(ids, had, cut=len(ids) >= max_length)
            for ids, had in zip(rows.rows, given, strict=True)
        ]
        return Encoded(numbers=list(range(len(labels))), rows=rows.rows, labels=labels)

    def _check_found(self, rows: TokenizedRows, max_length: int) -> None:
        """A wrong response marker learns nothing; a wrong instruction marker, the questions too."""
        for name, marker, variants in (
            ("response_part", self.markers.response, self.response),
            ("instruction_part", self.markers.instruction, self.instruction),
        ):
            if any(next(iter(_places(ids, variants)), None) for ids in rows.rows):
                continue
            cut = f", {rows.truncated} of them cut at {max_length} tokens" if rows.truncated else ""
            raise ValueError(
                f"`{name}` must occur in the rows; {marker!r}, the tokens {list(variants[0])}, is "
                f"in none of {len(rows.rows)}{cut}. The first row begins with the tokens "
                f"{rows.rows[0][:20].tolist()}. Pass the text that opens such a turn in the rows, "
                "force_match=False where its tokens depend on what stands beside it, or raise "
                "max_seq_length if rows were cut before it."
            )


def _variants(tokenizer: Any, name: str, marker: str, exact: bool) -> list[tuple[int, ...]]:
    """Tokens of a marker: alone, and among other characters."""
    alone = encode(tokenizer, [marker], specials=False)["input_ids"][0] if marker else []
    if not alone:
        raise ValueError(
            f"`{name}` must be text that has tokens; got {marker!r}. Pass what opens such a turn."
        )
    found = {tuple(alone): None}
    if not exact:
        around = [(before, behind) for before in _BEFORE for behind in _BEHIND]
        texts = [before + marker + behind for before, behind in around]
        encoded = encode(tokenizer, texts, specials=False, offsets=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for (before, _), text, (ids, offsets) in zip(around, texts, pairs, strict=True):
            start, stop = len(before), len(before) + len(marker)
            inside = [n for n, (a, b) in enumerate(offsets) if a < stop and b > start]
            # A token may take in space behind the marker, as ":\n\n" does of Llama 3.
            beyond = text[stop : offsets[inside[-1]][1]]
            if offsets[inside[0]][0] == start and not beyond.strip():
                found[tuple(ids[inside[0] : inside[-1] + 1])] = None
    return list(found)


def _places(ids: np.ndarray, variants: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Where a marker stands: its first token, and how many it has."""
    places = []
    for variant in variants:
        if len(variant) > len(ids):
            continue
        here = ids[: len(ids) - len(variant) + 1] == variant[0]
        for at in np.flatnonzero(here):
            if tuple(ids[at : at + len(variant)].tolist()) == variant:
                places.append((int(at), len(variant)))
    return places


def _half_place(ids: np.ndarray, variants: Sequence[tuple[int, ...]]) -> list[int]:
    """Where a row ends with the first tokens of a marker, not all: no answer is written there."""
    for size in range(max(map(len, variants)) - 1, 0, -1):
        tail = tuple(ids[-size:].tolist())
        if any(size < len(variant) and variant[:size] == tail for variant in variants):
            return [len(ids) - size]
    return []
