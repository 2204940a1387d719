"""Prompts of any form to one left-padded block."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NARROWEST = 32  # tokens, of a block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts whose last tokens stand side by side.

    Attributes:
      given: What the caller passed, rectangular, [B, P]; the output begins with it.
      input_ids: Tokens padded on the left, [B, W].
      segment_ids: 1 for tokens, 0 for padding, [B, W].
      positions: Of each token in its prompt, [B, W].
    """

    given: np.ndarray
    input_ids: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def bucket(length: int) -> int:
    """The width that is compiled for a length: at most a quarter more, or a multiple of 32.

    Four widths between two powers of two: few programs, little padding.

    Args:
      length: Tokens, >= 1.

    Returns:
      Tokens, >= `length`.
    """
    step = max(NARROWEST, (1 << (length - 1).bit_length()) // 8)
    return -(-length // step) * step


def prepare_prompts(
    input_ids: Any, attention_mask: Any, *, pad_token_id: int, vocab_size: int
) -> Prompts:
    """Put the tokens of each row at the right end of a block.

    Padding is what `attention_mask` says, on either side; never a token's value.

    Args:
      input_ids: [B, P] integers (NumPy, JAX, torch, nested lists), or rows of unequal length, or
        a tokenizer's mapping.
      attention_mask: [B, P], 1 for tokens; None: all are tokens.
      pad_token_id: Fills the block.
      vocab_size: V.

    Returns:
      The block; W is the bucket of the longest prompt.

    Raises:
      TypeError: A mapping without input_ids, or no integers.
      ValueError: Not two-dimensional, an empty prompt, or an id outside the vocabulary.
    """
    rows, given = _rows(input_ids, attention_mask, pad_token_id)
    if not rows or min(len(row) for row in rows) == 0:
        raise ValueError(
            "every prompt must hold at least one token; got an empty one. Begin it with the "
            "tokenizer's BOS token."
        )
    low, high = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token ids must be in [0, {vocab_size}); got ids from {low} to {high}. "
            "Use the tokenizer that belongs to the model."
        )
    longest = max(len(row) for row in rows)
    width = bucket(longest)
    block = np.full((len(rows), width), pad_token_id, np.int32)
    segments = np.zeros((len(rows), width), np.int32)
    positions = np.zeros((len(rows), width), np.int32)
    for place, row in enumerate(rows):
        block[place, width - len(row) :] = row
        segments[place, width - len(row) :] = 1
        positions[place, width - len(row) :] = np.arange(len(row))
    return Prompts(given=given, input_ids=block, segment_ids=segments, positions=positions)


def _rows(
    input_ids: Any, attention_mask: Any, pad_token_id: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """The tokens of each row, and a rectangular form of the input."""
    if isinstance(input_ids, Mapping):  # a tokenizer's, or a chat template's of transformers 5
        if "input_ids" not in input_ids or attention_mask is not None:
            raise TypeError(
                "a mapping must hold input_ids, and attention_mask where it needs one; got "
                f"{sorted(input_ids)}{' and attention_mask' * (attention_mask is not None)}. "
                "Pass what the tokenizer returned, alone."
            )
        input_ids, attention_mask = input_ids["input_ids"], input_ids.get("attention_mask")
        if _is_ragged(input_ids):
            attention_mask = None  # of a tokenizer that did not pad, it is all ones
    if _is_ragged(input_ids):
        if attention_mask is not None:
            raise ValueError(
                "`attention_mask` goes with rows of one length; got rows of several. "
                "Leave it out: the lengths say what is a token."
            )
        rows = [np.asarray(row, np.int32) for row in input_ids]
        width = max(len(row) for row in rows)
        given = np.full((len(rows), width), pad_token_id, np.int32)
        for place, row in enumerate(rows):
            given[place, width - len(row) :] = row
        return rows, given
    given = _as_numpy(input_ids)
    if given.ndim != 2 or given.dtype.kind not in "iu":
        raise ValueError(
            "`input_ids` must be integers of shape [batch, length]; got "
            f"{given.dtype} of shape {given.shape}. For one prompt pass [ids]."
        )
    given = given.astype(np.int32)
    if attention_mask is None:
        return list(given), given
    mask = _as_numpy(attention_mask).astype(bool)
    if mask.shape != given.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {given.shape}; got {mask.shape}."
        )
    return [row[kept] for row, kept in zip(given, mask, strict=True)], given


def _is_ragged(input_ids: Any) -> bool:
    """Whether the input is a list of lists of several lengths."""
    if not isinstance(input_ids, Sequence):
        return False
    if not all(isinstance(row, Sequence) for row in input_ids):
        return False
    return len({len(row) for row in input_ids}) > 1


def _as_numpy(values: Any) -> np.ndarray:
    """Any array on the host; torch has no implicit way from its devices."""
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        values = values.detach().cpu()
    return np.asarray(values)
