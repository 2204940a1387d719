"""Calls as scripts written for other libraries make them: more keywords than a function has."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def explained(
    instead: Mapping[str, str], neutral: Mapping[str, tuple[Any, ...] | None]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function take keywords that it does not have, where they would change nothing.

    Args:
      instead: {a keyword of others': what to do in its place}.
      neutral: {likewise: its values that change nothing here; None: every value}.

    Returns:
      A decorator: the function, which refuses every other unknown keyword by a TypeError that says
      what it takes, and what to do.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in [name for name in kwargs if name not in names]:
                value = kwargs.pop(name)
                if name in neutral and _is_among(value, neutral[name]):
                    continue
                near = difflib.get_close_matches(name, names, n=1)
                advice = instead.get(name) or (
                    f"Did you mean {near[0]}?" if near else "Leave it out."
                )
                got = f"{name}={value!r}" if name in neutral else repr(name)
                raise TypeError(
                    f"`{function.__name__}` takes {', '.join(names[1:])}; got {got}. {advice}"
                )
            return function(*args, **kwargs)

        return checked

    return decorate


def _is_among(value: Any, values: tuple[Any, ...] | None) -> bool:
    """Whether a value is one of a few plain ones; an array is none."""
    if values is None:
        return True
    return any(type(value) is type(one) and value == one for one in values)
