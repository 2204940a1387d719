"""The tokenised rows: cut to length, and what was done to them."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from jaxtune.data.batch import IGNORE

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
      learned: What the labels name, in words.
    """

    rows: list[np.ndarray]
    labels: list[np.ndarray] | None = None
    truncated: int = 0
    tokens_lost: int = 0
    eos_appended: int = 0
    dropped: int = 0
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
    rows: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    *,
    max_length: int,
    eos_appended: int = 0,
    learned: str = EVERY_TOKEN,
) -> TokenizedRows:
    """Cut each row at its end, its labels alike, and leave out what teaches nothing, as TRL does.

    Args:
      rows: Token ids of each row, int32.
      labels: Aligned with the rows; None: the ids are the labels.
      max_length: Longest row, tokens.
      eos_appended: Carried into the result.
      learned: Carried into the result.

    Returns:
      The rows that are left, and the counts.

    Raises:
      ValueError: No row is left.
    """
    kept: list[int] = []
    for number in range(len(rows)):
        counted = (rows if labels is None else labels)[number][:max_length]
        if len(counted) and (labels is None or (counted != IGNORE).any()):
            kept.append(number)
    if not kept:
        raise ValueError(
            f"at least one row must have a label to learn; all {len(rows)} rows are empty or hold "
            f"nothing but {IGNORE} in their first {max_length} tokens. {_cause(rows, labels)}"
        )
    over = [len(rows[number]) - max_length for number in kept if len(rows[number]) > max_length]
    return TokenizedRows(
        rows=[_cut(rows[number], max_length) for number in kept],
        labels=None if labels is None else [_cut(labels[number], max_length) for number in kept],
        truncated=len(over),
        tokens_lost=sum(over),
        eos_appended=eos_appended,
        dropped=len(rows) - len(kept),
        learned=learned,
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
