"""How tokens are chosen: by the call, the model's generation_config.json, or the defaults."""

import dataclasses
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxtune.errors import NotBuiltYetError
from jaxtune.generation.warp import Warp

# transformers' value where neither the call nor generation_config.json has one.
DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
}
# What only a draw reads.
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# What generation_config.json may also ask for, and nothing here does.
UNSERVED = (
    "num_beams",
    "min_length",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "typical_p",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How tokens are chosen.

    Attributes:
      do_sample: Draw; else the likeliest token is taken.
      temperature: Divides the logits, > 0.
      top_k: Likeliest tokens kept; 0: all.
      top_p: Probability kept, 0 to 1; 1: all.
      min_p: Least probability kept, as a fraction of the largest, 0 to 1; None: all.
      repetition_penalty: On tokens already there, > 0; 1: none.
    """

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float | None
    repetition_penalty: float

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.do_sample and not self.temperature > 0:
            raise ValueError(
                f"`temperature` must be > 0 with do_sample=True; got {self.temperature}. For the "
                "likeliest token every time pass do_sample=False."
            )
        if not 0 <= self.top_p <= 1:
            raise ValueError(
                f"`top_p` must be in [0, 1]; got {self.top_p}. Pass 1.0 to keep all tokens."
            )
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(
                f"`min_p` must be in [0, 1]; got {self.min_p}. Pass None to keep all tokens."
            )
        if not self.repetition_penalty > 0:
            raise ValueError(
                f"`repetition_penalty` must be > 0; got {self.repetition_penalty}. Pass 1.0 for "
                "none, more than 1 against repetition."
            )

    def warp(self, seed: int) -> Warp:
        """The steps on the logits that these settings ask for."""
        penalty = self.repetition_penalty
        penalty = None if penalty == 1 else np.float32(penalty)
        if not self.do_sample:
            return Warp(repetition_penalty=penalty)
        return Warp(
            key=jax.random.key(seed),
            temperature=None if self.temperature == 1 else np.float32(self.temperature),
            top_k=self.top_k or None,
            top_p=None if self.top_p >= 1 else np.float32(self.top_p),
            min_p=None if self.min_p is None else np.float32(self.min_p),
            repetition_penalty=penalty,
        )


def settle(given: Mapping[str, Any], of_model: Mapping[str, Any]) -> Settings:
    """The call's values, else the model's, else transformers' defaults.

    Args:
      given: The call's values by the names of `DEFAULTS`; None or absent: not given.
      of_model: generation_config.json.

    Returns:
      The settings.

    Raises:
      ValueError: A value is out of range.
    """
    values = dict(DEFAULTS)
    for mapping in (of_model, given):
        values |= {name: mapping[name] for name in DEFAULTS if mapping.get(name) is not None}
    top_k = values["top_k"]
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 0:
        raise ValueError(
            f"`top_k` must be an integer >= 0; got {top_k!r}. Pass 0 to keep all tokens."
        )
    settings = Settings(**values)
    unserved = [name for name in UNSERVED if of_model.get(name) not in (None, 0, 1, [])]
    if unserved:
        warnings.warn(
            f"the model's generation_config.json asks for {', '.join(unserved)}, which is not "
            "built: generation here differs from transformers' by that.",
            stacklevel=4,
        )
    idle = [name for name in OF_SAMPLING if given.get(name) not in (None, DEFAULTS[name])]
    # Temperature 0 means what greedy choice does.
    idle = [name for name in idle if (name, given[name]) != ("temperature", 0)]
    if idle and not settings.do_sample:
        warnings.warn(
            f"{', '.join(idle)} changes nothing without do_sample=True, which neither this call "
            "nor the model's generation_config.json says: the likeliest token is taken.",
            stacklevel=4,
        )
    return settings


def stop_ids(given: Any, *of_model: Mapping[str, Any]) -> list[int]:
    """Ids that end a row: the call's, else those of the first mapping that names any."""
    for ids in (given, *(mapping.get("eos_token_id") for mapping in of_model)):
        if ids is not None:
            return [operator.index(one) for one in np.atleast_1d(np.asarray(ids)).tolist()]
    return []


def pad_id(
    given: int | None, stops: list[int], vocab_size: int, *of_model: Mapping[str, Any]
) -> int:
    """What follows in a row that has ended: the call's, else the model's, else its first EOS."""
    known = [given, *(mapping.get("pad_token_id") for mapping in of_model)]
    likely = [one for one in stops if one >= 0]  # -1 stands for no stop
    pad = next((operator.index(one) for one in [*known, *likely] if one is not None), 0)
    if not 0 <= pad < vocab_size:
        raise ValueError(
            f"`pad_token_id` must be in [0, {vocab_size}); got {pad}. Leave it out for the model's."
        )
    return pad


def check_counts(max_new_tokens: int, num_return_sequences: int, *, do_sample: bool) -> None:
    """Refuse counts under 1, and several copies of one greedy answer."""
    counts = (("max_new_tokens", max_new_tokens), ("num_return_sequences", num_return_sequences))
    for name, count in counts:
        if count < 1:
            raise ValueError(f"`{name}` must be >= 1; got {count}.")
    if num_return_sequences > 1 and not do_sample:
        raise ValueError(
            "`num_return_sequences` must be 1 without sampling, since all would be the same; got "
            f"{num_return_sequences}. Pass do_sample=True."
        )


def check_cache(use_cache: bool) -> None:
    """Refuse a generation without a cache."""
    if not use_cache:
        raise NotBuiltYetError(
            "`use_cache` must be True: there is no generation without the key/value cache; got "
            "False. Leave it out, the tokens are the same."
        )
