"""The tokenised rows: cut to length, and what was done to them."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from jaxtune.data.bad_rows import NAMED
from jaxtune.data.batch import IGNORE
from jaxtune.data.encoded import Encoded

EVERY_TOKEN = "every token"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedRows:
    """The training rows.

    Attributes:
      rows: Token ids of each row, int32.
      labels: Aligned with each row, int32, -100 ignored; None: the ids are the labels.
      truncated: Rows that were cut.
      tokens_lost: Tokens cut away.
      eos_appended: Rows that did not end with EOS and got one.
      dropped: Rows without one label to learn (no tokens, or all -100) after the cut, left out.
      first_truncated: Numbers of the first few that were cut, in the data set.
      skipped: What was left out because it is bad or too long, in words.
      learned: What the labels name, in words.
    """

    rows: list[np.ndarray]
    labels: list[np.ndarray] | None = None
    truncated: int = 0
    tokens_lost: int = 0
    eos_appended: int = 0
    dropped: int = 0
    first_truncated: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    learned: str = EVERY_TOKEN

    def __len__(self) -> int:
        """Rows."""
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        """A row as `datasets` would show it: `input_ids`, `attention_mask` and `labels`.

        Args:
          number: Of the row; negative from the end.

        Returns:
          Lists of one length.
        """
        ids = self.rows[number].tolist()
        labels = ids if self.labels is None else self.labels[number].tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(labels)}

    def digest(self) -> str:
        """A short text that differs where the ids or the labels of two data sets do."""
        found = hashlib.blake2b(digest_size=16)
        for part in (self.rows, self.labels or ()):
            for row in part:
                found.update(len(row).to_bytes(8, "little"))
                found.update(np.asarray(row, "<i4").tobytes())
        return found.hexdigest()


def cut_rows(
    encoded: Encoded, max_length: int, *, learned: str = EVERY_TOKEN, skipped: tuple[str, ...] = ()
) -> TokenizedRows:
    """Cut each row at its end, its labels alike, and leave out what teaches nothing, as TRL does.

    Args:
      encoded: The rows.
      max_length: Longest row, tokens.
      learned: Carried into the result.
      skipped: Likewise.

    Returns:
      The rows that are left, maybe none, and the counts.
    """
    rows, labels = encoded.rows, encoded.labels
    kept: list[int] = []
    for number in range(len(rows)):
        counted = (rows if labels is None else labels)[number][:max_length]
        if len(counted) and (labels is None or (counted != IGNORE).any()):
            kept.append(number)
    over = [number for number in kept if len(rows[number]) > max_length]
    return TokenizedRows(
        rows=[_cut(rows[number], max_length) for number in kept],
        labels=None if labels is None else [_cut(labels[number], max_length) for number in kept],
        truncated=len(over),
        tokens_lost=sum(len(rows[number]) - max_length for number in over),
        first_truncated=tuple(encoded.numbers[number] for number in over[:NAMED]),
        eos_appended=encoded.eos_appended,
        dropped=len(rows) - len(kept),
        skipped=skipped,
        learned=learned,
    )


def check_some_left(cut: TokenizedRows, encoded: Encoded, max_length: int) -> None:
    """Raise if no row is left, and say why.

    Args:
      cut: What is left.
      encoded: What it was cut from.
      max_length: At which it was cut, tokens.

    Raises:
      ValueError: No row is left.
    """
    if cut.rows:
        return
    skipped = "".join(f" Skipped: {line}." for line in cut.skipped)
    raise ValueError(
        f"at least one row must have a label to learn; all {len(encoded.rows)} rows are empty or "
        f"hold nothing but {IGNORE} in their first {max_length} tokens.{skipped} "
        f"{_cause(encoded.rows, encoded.labels)}"
    )


def _cause(rows: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None) -> str:
    """Why nothing is learned, and what to do."""
    learned = [np.flatnonzero(row != IGNORE) for row in (rows if labels is None else labels)]
    first = [int(places[0]) for places in learned if len(places)]
    if first:
        return (
            f"The first token to learn of the nearest row is its {min(first) + 1}th: rows were cut "
            "before it. Raise the limit (max_seq_length)."
        )
    return (
        "The rows hold no such label before they are cut either: look at how the labels were made "
        "(an answer that is empty, no turn of the assistant, masks that cover all)."
    )


def _cut(row: np.ndarray, max_length: int) -> np.ndarray:
    """A copy where something is cut: a view would keep the long row in memory."""
    return row[:max_length].copy() if len(row) > max_length else row
