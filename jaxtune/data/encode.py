"""Texts to token ids, on the threads that were asked for; the tokenizer is not changed."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

# Fewer rows take less than a second or two.
_PROGRESS_ABOVE = 5000
# Texts that a thread takes at once: handing over each one alone costs a tenth of the time.
_TASK = 16


@contextlib.contextmanager
def tokenizer_threads(tokenizer: Any, threads: int | None) -> Iterator[Executor | None]:
    """The threads that encode; None: the tokenizer's own.

    Args:
      tokenizer: One written in Python cannot run on several, and gets none.
      threads: How many; None leaves it to the tokenizer.

    Yields:
      What `encode` takes as its pool.
    """
    if threads is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        yield None
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool


def progress_bar(total: int) -> Any:
    """A bar over rows, which shows where there are more than 5,000."""
    return tqdm(
        total=total, desc="jaxtune: tokenising", unit="row", disable=total <= _PROGRESS_ABOVE
    )


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pool: Executor | None = None,
    *,
    specials: bool = True,
    offsets: bool = False,
) -> Mapping[str, list[Any]]:
    """Token ids of each text, neither cut nor padded.

    The tokenizer spreads the texts of one call over all cores by itself, and encodes the text of
    a call of one on the thread that calls, without Python's lock: so threads that pass one text at
    a time are as many as asked for.

    Args:
      tokenizer: A transformers tokenizer; not changed.
      texts: At least one.
      pool: From `tokenizer_threads`.
      specials: Add the tokenizer's own special tokens; a rendered template has them already.
      offsets: Also tell which characters each token stands for.

    Returns:
      `input_ids`, and `offset_mapping` if asked for, a list for each text.
    """
    # `verbose=False`: rows are cut later, the warning about long ones would mislead. Options at
    # their default are not passed: a tokenizer need only know what it is asked for.
    more: dict[str, bool] = {} if specials else {"add_special_tokens": False}
    if offsets:
        more["return_offsets_mapping"] = True
    call = functools.partial(
        tokenizer,
        truncation=False,
        padding=False,
        verbose=False,
        return_attention_mask=False,
        **more,
    )
    with _unlimited(tokenizer):
        if pool is None:
            return call(list(texts))
        parts = [texts[start : start + _TASK] for start in range(0, len(texts), _TASK)]
        done = pool.map(lambda part: [call([text]) for text in part], parts)
        single = [encoding for part in done for encoding in part]
    names = ("input_ids", "offset_mapping")[: 1 + offsets]
    return {name: [encoding[name][0] for encoding in single] for name in names}


@contextlib.contextmanager
def _unlimited(tokenizer: Any) -> Iterator[None]:
    """No truncation and no padding inside; what the tokenizer was saved with survives.

    A call of a transformers tokenizer sets them on the object underneath, which must not happen
    while another thread encodes. So they are set before, and the calls find nothing to set.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    special = backend.encode_special_tokens
    try:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = tokenizer.split_special_tokens
        yield
    finally:
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)
        backend.encode_special_tokens = special
