"""Collators of other libraries that scripts pass, and what becomes of them."""

from typing import Any

from transformers import DataCollatorForSeq2Seq

from jaxtune.data.batch import IGNORE
from jaxtune.errors import NotBuiltYetError

__all__ = ["DataCollatorForSeq2Seq", "check_collator"]


def check_collator(collator: Any) -> None:
    """Raise for a collator that makes other batches than this library's own.

    transformers' `DataCollatorForSeq2Seq` pads ids, and labels by -100: so do ours, by length, and
    it need not be called.

    Args:
      collator: From the user; None: none.

    Raises:
      NotBuiltYetError: Another collator.
      ValueError: Labels of padding that would count, or no padding.
    """
    if collator is None:
        return
    if type(collator) is not DataCollatorForSeq2Seq:
        raise NotBuiltYetError(
            f"`data_collator` is not built yet; got {type(collator).__name__}. Leave it out, or "
            "pass DataCollatorForSeq2Seq: rows with `input_ids` and `labels` are taken as they are."
        )
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
