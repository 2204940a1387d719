"""The one exception of this package, and the form of its message."""

import reprlib


class CheckpointError(ValueError):
    """A file that we read or were asked to write breaks a rule of its format.

    The message says the rule, what was got, what was wanted and what to do. It is a `ValueError`,
    because the folder or the tensors were an argument of the caller.
    """


def broken(rule: str, *, got: str, wanted: str, cure: str) -> CheckpointError:
    """Build the error "rule; got; wanted; what to do", for the caller to raise.

    Args:
      rule: The invariant, naming the file or key that breaks it.
      got: What was found instead.
      wanted: What would have been accepted.
      cure: What the user can do, as a sentence.

    Returns:
      The exception, not yet raised.
    """
    return CheckpointError(f"{rule}; got {got}; wanted {wanted}. {cure}")


def shown(value: object, limit: int = 200) -> str:
    """Write a value from a hostile file into a message: escaped and short.

    Args:
      value: Anything a JSON file can hold.
      limit: Longest result in characters.

    Returns:
      `repr(value)`, cut at `limit` and at six levels of nesting.
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = limit // 2
    text = short.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
