"""Collators that scripts pass, and what becomes of them."""

import warnings
from typing import Any

from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

from jaxtune.data.batch import IGNORE
from jaxtune.data.collated import Collator

__all__ = ["DataCollatorForSeq2Seq", "host_collator", "packs_rows"]


def host_collator(collator: Any) -> Collator | None:
    """The collator that must be called, if it is one.

    transformers' `DataCollatorForSeq2Seq` and `DataCollatorForLanguageModeling`, and TRL's, pad
    ids, and labels by -100: so do ours, by length, and they need not be called.

    Args:
      collator: From the user; None: none.

    Returns:
      The user's own; None: rows are laid out as usual.

    Raises:
      TypeError: It cannot be called.
      ValueError: Labels of padding that would count, no padding, or masked language modelling.
    """
    if collator is None:
        return None
    kind = type(collator)
    if kind is DataCollatorForSeq2Seq:
        _check_padding(collator)
        return None
    if kind is DataCollatorForLanguageModeling:
        if collator.mlm:
            raise ValueError(
                "`mlm` of the collator must be False: a causal language model learns what comes "
                "next, not what was masked; got True. Pass mlm=False, or leave the collator out."
            )
        return None
    if kind.__name__ == DataCollatorForLanguageModeling.__name__ and kind.__module__[:4] == "trl.":
        return None
    if not callable(collator):
        raise TypeError(
            "`data_collator` must be a function of a list of rows; got "
            f"{kind.__name__}. Leave it out, or pass DataCollatorForSeq2Seq(tokenizer)."
        )
    return collator


def packs_rows(asked: bool, collator: Collator | None) -> bool:
    """Whether rows are packed; a warning says why not, where it was asked for.

    Args:
      asked: The option.
      collator: From `host_collator`.

    Returns:
      False where the user's own collator lays the rows out.
    """
    if asked and collator is not None:
        warnings.warn(
            "packing=True is ignored: `data_collator` lays out the rows itself. Leave one of the "
            "two out.",
            stacklevel=3,
        )
    return asked and collator is None


def _check_padding(collator: DataCollatorForSeq2Seq) -> None:
    if collator.label_pad_token_id != IGNORE:
        raise ValueError(
            f"`label_pad_token_id` of the collator must be {IGNORE}, so that padding is not "
            f"learned; got {collator.label_pad_token_id}. Leave it out."
        )
    if collator.padding in (False, "do_not_pad"):
        raise ValueError(
            f"`padding` of the collator must be on: rows of one batch have one length; got "
            f"{collator.padding!r}. Leave it out."
        )
