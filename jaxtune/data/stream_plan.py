"""How the windows of a stream are laid out: by what its first rows are like."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from jaxtune.data.collate import Place, Window
from jaxtune.data.packed import Piece
from jaxtune.data.packing import one_a_bin, pack
from jaxtune.data.plan import Plan, Request, make_plan, rounded
from jaxtune.data.rows import TokenizedRows
from jaxtune.data.stream import RowStream, ahead


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Example:
    """A row of the stream, or several packed into one.

    Attributes:
      rows: The chunk that it is of.
      pieces: Of these rows.
      after: Where a run stands that has used it, its window left out.
    """

    rows: TokenizedRows
    pieces: Sequence[Piece]
    after: Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """The layout of a run over a stream.

    Attributes:
      head: The plan of the stream's first rows.
      longest: Tokens up to which an example fits that plan.
      rest: The plan of windows with a longer one; it takes any.
      examples: None: their number is not known.
      micro_batches_per_epoch: None likewise.
      windows_per_epoch: As many as a run can have.
    """

    head: Plan
    longest: int
    rest: Plan
    examples: None = None
    micro_batches_per_epoch: None = None
    windows_per_epoch: int = sys.maxsize

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.head.request

    def end(self, place: Place) -> Place:
        """The end of a place's pass, whose windows are done or left out."""
        return dataclasses.replace(place, chunk=sys.maxsize)

    def windows(self, stream: RowStream, place: Place) -> Iterator[Window]:
        """The windows of a pass, or of what is left of it, in the order of the stream.

        The rows at its end make a window of their own, however few.

        Args:
          stream: What the plan was made for.
          place: Where to begin.

        Yields:
          Windows of as many examples as the run asks for.

        Raises:
          ValueError: A whole pass gives no window, or rows are to be refused.
        """
        if place == self.end(place):
            return
        size = self.request.window
        waiting: list[_Example] = []
        number = place.window
        for example in self._examples(stream, place):
            waiting.append(example)
            if len(waiting) == size:
                number += 1
                yield self._window(waiting, number)
                waiting = []
        if waiting:
            yield self._window(waiting, number + 1)
        elif number == 0:
            raise ValueError(
                f"every pass over a stream must give rows; got none in pass {place.epoch + 1}. A "
                "generator that can be read once is no stream: pass a function that makes it anew "
                "to datasets.IterableDataset.from_generator."
            )

    def _examples(self, stream: RowStream, place: Place) -> Iterator[_Example]:
        request = self.head.request
        chunks = ahead(stream.chunks(place.epoch, place.chunk))
        for number, rows in enumerate(chunks, place.chunk):
            lengths = np.array([len(row) for row in rows.rows], np.int64)
            if request.packing is None:
                bins = one_a_bin(lengths)
            else:
                bins = pack(lengths, request.max_length, request.packing, group=None)
            for place_in_chunk in range(place.used if number == place.chunk else 0, len(bins)):
                after = Place(epoch=place.epoch, chunk=number, used=place_in_chunk + 1)
                yield _Example(rows=rows, pieces=bins.pieces(place_in_chunk), after=after)

    def _window(self, examples: Sequence[_Example], number: int) -> Window:
        """The window of this number, counted from 1, of examples of one chunk or two."""
        ids, labels, pieces = [], [], []
        for example in examples:
            its = example.rows
            pieces.append([])
            for row, start, stop in example.pieces:
                pieces[-1].append((len(ids), start, stop))
                ids.append(its.rows[row])
                labels += [] if its.labels is None else [its.labels[row]]
        longest = max(sum(stop - start for _, start, stop in its) for its in pieces)
        plan = self.head if longest <= self.longest else self.rest
        window = plan.lay_out(TokenizedRows(rows=ids, labels=labels or None), pieces)
        return dataclasses.replace(
            window, after=dataclasses.replace(examples[-1].after, window=number)
        )


def make_stream_plan(stream: RowStream, request: Request) -> StreamPlan:
    """Choose layout and shapes by the head of a stream.

    Args:
      stream: The rows.
      request: What was asked for.

    Returns:
      The plan of a run over the head; windows with a longer example have one shape more.
    """
    lengths = np.array([len(row) for row in stream.head.rows], np.int64)
    head = make_plan(lengths, request)
    packed = request.packing is not None
    rest = dataclasses.replace(
        head,
        kind="packed" if packed else "padded",
        lengths=(request.max_length,),
        slots=(request.accumulation,) if packed else (),
    )
    longest = rounded(int(head.bins.tokens().max()), request.max_length)
    return StreamPlan(head=head, longest=longest, rest=rest)
