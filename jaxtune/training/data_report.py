"""What a run is about to learn, said before anything is compiled."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxtune.data.bad_rows import row_names
from jaxtune.data.batch import IGNORE
from jaxtune.data.rows import TokenizedRows

# Characters of one stretch of the row that is shown; of more, both ends.
_SHOWN = 240
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def report_lines(
    rows: TokenizedRows, tokenizer: Any, max_length: int, *, colour: bool
) -> Iterator[str]:
    """What was done to the rows, and one of them with the tokens that are learned marked.

    Args:
      rows: To train on.
      tokenizer: That of the rows.
      max_length: At which they were cut, tokens.
      colour: Mark by colour; else by brackets, [[ and ]].

    Yields:
      Lines for a person.
    """
    if rows.eos_appended:
        yield f"jaxtune: end-of-text token appended to {rows.eos_appended:,} rows"
    if rows.dropped:
        yield f"jaxtune: {rows.dropped:,} rows left out, they hold nothing to learn"
    for line in rows.skipped:
        yield f"jaxtune: skipped {line}"
    if rows.truncated:
        yield (
            f"jaxtune: {rows.truncated:,} rows cut at {max_length} tokens, "
            f"{rows.tokens_lost:,} tokens lost: {row_names(rows.first_truncated, rows.truncated)}"
        )
    total = sum(map(len, rows.rows))
    labels = rows.rows if rows.labels is None else rows.labels
    learned = sum(int((row != IGNORE).sum()) for row in labels)
    yield (
        f"jaxtune: learned: {rows.learned}; {learned:,} of {total:,} tokens "
        f"({100 * learned / max(total, 1):.1f} %)"
    )
    yield f"jaxtune: {_specials(rows, labels, tokenizer)}"
    yield f"jaxtune: row 1, {'green' if colour else '[[...]]'} is learned:"
    yield _marked(rows.rows[0], labels[0], tokenizer, colour)


def _specials(rows: TokenizedRows, labels: Sequence[np.ndarray], tokenizer: Any) -> str:
    """How rows begin, and which special token their learned part ends with."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    count = len(rows.rows)
    parts = []
    if bos is not None:
        begun = sum(len(row) > 0 and int(row[0]) == bos for row in rows.rows)
        doubled = sum(list(row[:2]) == [bos, bos] for row in rows.rows)
        parts.append(f"{begun:,} of {count:,} rows begin with {tokenizer.bos_token}")
        if doubled:
            parts.append(f"{doubled:,} with two of them")
    if eos is not None:
        ended = sum(bool((row == eos).any()) for row in labels)
        parts.append(f"{ended:,} learn {tokenizer.eos_token}")
    special = np.array(sorted(_special_ids(tokenizer) - {bos, eos, None}), np.int64)
    last = [row[np.isin(row, special)] for row in labels]
    others = Counter(int(found[-1]) for found in last if len(found))
    for token, rows_ in others.most_common(1):
        parts.append(f"{rows_:,} learn {tokenizer.convert_ids_to_tokens(token)}")
    return ", ".join(parts) if parts else "the tokenizer has neither BOS nor EOS"


def _special_ids(tokenizer: Any) -> set[int]:
    """All of them: those that close turns are seldom among the named ones."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    return {*tokenizer.all_special_ids, *special}


def _marked(ids: np.ndarray, labels: np.ndarray, tokenizer: Any, colour: bool) -> str:
    """The row as text, what is learned marked."""
    start, end = (_GREEN, _PLAIN) if colour else ("[[", "]]")
    edges = np.flatnonzero(np.diff(labels != IGNORE)) + 1
    pieces, before = [], ""
    for part in np.split(np.arange(len(ids)), edges):
        # Text up to here, less what stood before: tokens decoded by themselves lose their spaces.
        upto = tokenizer.decode(ids[: part[-1] + 1].tolist(), skip_special_tokens=False)
        piece = _short(upto[len(before) :] if upto.startswith(before) else upto)
        pieces.append(f"{start}{piece}{end}" if labels[part[0]] != IGNORE else piece)
        before = upto
    return "".join(pieces)


def _short(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]} ...({len(text) - 2 * half:,} characters)... {text[-half:]}"
