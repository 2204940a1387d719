"""Rows that are tokens, before they are cut."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """The rows that some rows of the data set became.

    Attributes:
      numbers: Of the data set's row that each one comes from.
      rows: Token ids of each, int32.
      labels: Aligned with the rows, -100 ignored; None: the ids are the labels.
      eos_appended: Rows that did not end with EOS and got one.
    """

    numbers: list[int] = dataclasses.field(default_factory=list)
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)
    labels: list[np.ndarray] | None = None
    eos_appended: int = 0

    def without(self, places: set[int]) -> "Encoded":
        """These rows but for some.

        Args:
          places: Of the rows that are left out.

        Returns:
          The others.
        """
        if not places:
            return self
        kept = [place for place in range(len(self.rows)) if place not in places]
        return dataclasses.replace(
            self,
            numbers=[self.numbers[place] for place in kept],
            rows=[self.rows[place] for place in kept],
            labels=None if self.labels is None else [self.labels[place] for place in kept],
        )
