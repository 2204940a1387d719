"""Rows that cannot be learned: counted, named by their number, refused or left out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Made = TypeVar("Made")

# Of so many a refusal says no more than that there are as many.
_MOST = 1000
# Rows that a message names.
NAMED = 5


class BadRowError(ValueError):
    """A row cannot be learned; the message names it by its number."""


class BadRows:
    """Collects them over a pass through the data.

    Attributes:
      refuses: The pass is to end in an error if there is one.
      count: How many there are.
      numbers: Of the first few.
      reasons: What is wrong with these.
    """

    def __init__(self, option: str, policy: str) -> None:
        """Nothing is bad yet.

        Args:
          option: Name of the option that the policy comes from.
          policy: "refuse" ends the pass in an error, "skip" leaves the rows out.
        """
        self._option = option
        self.refuses = policy == "refuse"
        self.count = 0
        self.numbers: list[int] = []
        self.reasons: list[BadRowError] = []

    @property
    def refused(self) -> bool:
        """The pass will end in an error: costly work is of no use any more."""
        return self.refuses and self.count > 0

    def note(self, number: int, error: BadRowError) -> None:
        """Take a bad row.

        Args:
          number: Of the row.
          error: What is wrong with it.

        Raises:
          ValueError: There are so many rows to refuse that the rest need not be read.
        """
        self.count += 1
        if len(self.numbers) < NAMED:
            self.numbers.append(number)
            self.reasons.append(error)
        if self.count >= _MOST:
            self.check()

    def check(self) -> None:
        """Raise where a row was noted that is to be refused.

        Raises:
          ValueError: What is wrong with the first, and how many there are.
        """
        if not self.refused:
            return
        first = self.reasons[0]
        or_more = " or more" * (self.count >= _MOST)
        many = f" {self.count:,} rows{or_more} are bad: {row_names(self.numbers, self.count)}."
        raise ValueError(
            f"{first}{many if self.count > 1 else ''} {self._option}='skip' leaves such rows out."
        ) from first.__cause__


def good_rows(
    rows: Sequence[Any],
    first: int,
    bad: BadRows,
    make: Callable[[Mapping[str, Any], int], Made],
) -> list[tuple[int, Made]]:
    """What is made of each row that is not bad.

    Args:
      rows: Of the data set.
      first: Number of the first.
      bad: Takes the others.
      make: Of a row and its number; raises `BadRowError`.

    Returns:
      Pairs of a number and what was made.
    """
    made = []
    for number, row in enumerate(rows, first):
        try:
            if not isinstance(row, Mapping):
                raise BadRowError(
                    "every row must be a mapping of column names to values; row "
                    f"{number} is {type(row).__name__}. Pass rows such as {{'text': ...}}."
                )
            made.append((number, make(row, number)))
        except BadRowError as error:
            bad.note(number, error)
    return made


def row_names(numbers: Sequence[int], count: int) -> str:
    """The first few of some rows, for a message: "rows 3, 8 and 90 more"."""
    shown = ", ".join(map(str, numbers[:NAMED]))
    more = count - min(len(numbers), NAMED)
    return f"row{'s' * (count > 1)} {shown}" + (f" and {more:,} more" if more > 0 else "")
