"""One BOS at the start of a text, EOS at its end."""

from collections.abc import Sequence
from typing import Any


def with_specials(
    ids: Sequence[int], tokenizer: Any, *, eos: bool = True
) -> tuple[Sequence[int], bool]:
    """The ids with one BOS at the start at most, and EOS at the end.

    Args:
      ids: Of a text that the tokenizer encoded with its special tokens.
      tokenizer: Knows both tokens; one that it lacks is not added.
      eos: Add EOS where the ids do not end with it.

    Returns:
      The ids, and whether EOS was added.
    """
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = 0
    if bos is not None:
        while list(ids[start : start + 2]) == [bos, bos]:
            start += 1
    ids = ids[start:]
    if not eos or end is None or (len(ids) and ids[-1] == end):
        return ids, False
    return [*ids, end], True
