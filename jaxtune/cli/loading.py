"""A model or an adapter from the command line, to talk to or to export."""

from typing import Any

from jaxtune.console import say
from jaxtune.language_model import LanguageModel
from jaxtune.pretrained import Range, Source, load_pretrained
from pallas_kernels import check_backend


def load(
    name: str,
    base: str | None,
    *,
    max_seq_length: int | None = None,
    dtype: str | None = None,
    load_in_4bit: bool = False,
    kernels: str = "auto",
    local_files_only: bool = False,
) -> tuple[LanguageModel, Any]:
    """Load a model, or an adapter on its base or on another copy of it.

    Args:
      name: Folder or hub id.
      base: Folder or hub id of an adapter's base; None: the one that it names.
      max_seq_length: Longest row in tokens; None: the model's range.
      dtype: See `FastLanguageModel.from_pretrained`.
      load_in_4bit: Likewise.
      kernels: Likewise.
      local_files_only: Likewise.

    Returns:
      (model, tokenizer or None).

    Raises:
      ValueError: `base` for what is no adapter, or a base that the adapter does not fit.
      OSError: No such folder or repository.
    """
    check_backend(kernels)
    model, tokenizer = load_pretrained(
        Source(name=name, base=base, local_files_only=local_files_only),
        Range(max_seq_length=max_seq_length),
        dtype=dtype,
        load_in_4bit=load_in_4bit,
    )
    model.model.kernels = kernels
    adapter = model.carried.adapter
    if base is not None and adapter is None:
        raise ValueError(f"--base goes with an adapter; {name} is a whole model. Leave it out.")
    if adapter is not None:
        say(f"{name} is an adapter; its base is {model.carried.name_or_path}.")
    return model, tokenizer
