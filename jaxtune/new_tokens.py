"""Tokens of one's own: added to the tokenizer, with rows in the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtune.language_model import LanguageModel
from jaxtune.models.vocabulary import grow_vocabulary, with_mean
from jaxtune.notes import tell

METHODS = ("mean", "interpolation")


def add_new_tokens(
    model: LanguageModel,
    tokenizer: Any,
    new_tokens: Sequence[str] = (),
    method: str = "mean",
    interpolation: int | float = 0.5,
) -> None:
    """Add tokens to a tokenizer, and rows for them to the model's embedding and head.

    "mean": each new row is the mean m of the rows of the old tokens; "interpolation":
    (1 - p) m + p t, where t is the mean of the rows that the token's text had been cut into.

    Call it before `get_peft_model`, whose `modules_to_save` must then have `embed_tokens` and, of a
    model with a head of its own, `lm_head`: an adapter holds no other rows.

    Args:
      model: Changed in place.
      tokenizer: Changed in place; it becomes the one that the model carries.
      new_tokens: Texts that the tokenizer has no token for.
      method: "mean" or "interpolation".
      interpolation: p, 0 to 1.

    Raises:
      TypeError: `new_tokens` is one text.
      ValueError: The model has an adapter, a token is there already or twice, or a value is out of
        range.
    """
    _check(model, tokenizer, new_tokens, method, interpolation)
    if not new_tokens:
        return
    known = min(len(tokenizer), model.config.vocab_size)
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in new_tokens]
    tokenizer.add_tokens(list(new_tokens))
    ids = tokenizer.convert_tokens_to_ids(list(new_tokens))
    size = max(model.config.vocab_size, max(ids) + 1)

    def grow(rows: np.ndarray) -> np.ndarray:
        grown = with_mean(rows, size, known)
        mean = rows[:known].mean(axis=0, dtype=np.float64)
        for number, text in zip(ids, pieces, strict=True):
            grown[number] = mean
            if method == "interpolation" and text:
                own = rows[text].mean(axis=0, dtype=np.float64)
                grown[number] = (1 - interpolation) * mean + interpolation * own
        return grown

    grow_vocabulary(model, size, grow)
    model.carried.tokenizer = tokenizer
    tell(
        f"jaxtune: {len(new_tokens)} tokens added, {min(ids)} to {max(ids)}; the model has "
        f"{size:,} rows. They learn where embed_tokens and lm_head are in modules_to_save."
    )


def _check(
    model: LanguageModel,
    tokenizer: Any,
    new_tokens: Sequence[str],
    method: str,
    interpolation: int | float,
) -> None:
    """Refuse what cannot be added, before anything is changed."""
    if isinstance(new_tokens, str):
        raise TypeError(
            f"`new_tokens` must be a list of texts; got {new_tokens!r}. Pass [{new_tokens!r}]."
        )
    if model.carried.adapter is not None:
        raise ValueError(
            "tokens must be added before the adapter, which holds a matrix of as many rows; got a "
            "model with one. Call add_new_tokens before get_peft_model."
        )
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}; got {method!r}.")
    if not 0 <= interpolation <= 1:
        raise ValueError(f"`interpolation` must be in [0, 1]; got {interpolation}.")
    held = tokenizer.get_vocab()
    there = [text for text in new_tokens if text in held]
    if there or len(set(new_tokens)) < len(new_tokens) or "" in new_tokens:
        raise ValueError(
            "every new token must be a text of its own that the tokenizer has no token for; got "
            f"{there[:3] or list(new_tokens)[:3]}. Leave out what is there already."
        )
