"""An argument that does not exist: say which do, and what stands in its place."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# What transformers' `generate` takes besides, and what to do instead.
INSTEAD = {
    "inputs": "Pass input_ids.",
    "max_length": "Pass max_new_tokens, which counts new tokens alone.",
    "generation_config": "Pass its values by name; those of generation_config.json are read.",
    "num_beams": "There is no beam search: leave it out.",
    "min_new_tokens": "Nothing forces a length: leave it out.",
    "no_repeat_ngram_size": "Pass repetition_penalty.",
    "typical_p": "Pass top_p or min_p.",
    "stopping_criteria": "Pass eos_token_id or stop_strings.",
    "token_type_ids": "The models here have none: pass input_ids and attention_mask alone.",
    "stop": "Pass stop_strings.",
}


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Make a call with an unknown argument fail with what is wanted.

    Args:
      function: Any.

    Returns:
      The same function, otherwise.
    """
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                advice = INSTEAD.get(name) or (
                    f"Did you mean {near[0]}?" if near else "Leave it out."
                )
                raise TypeError(
                    f"`{function.__name__}` takes {', '.join(names[1:])}; got {name!r}. {advice}"
                )
        return function(*args, **kwargs)

    return checked
