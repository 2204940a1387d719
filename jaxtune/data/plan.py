"""How the windows of a run are laid out: padded, packed, padding-free or re-split."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from jaxtune.data.collate import Place, Window, bucket_lengths, collate, windows_per_epoch
from jaxtune.data.collated import Collator, collated
from jaxtune.data.order import sampled
from jaxtune.data.packed import Piece, micro_batches
from jaxtune.data.packing import Bins, one_a_bin, pack
from jaxtune.data.resplit import GRANULE, OVERHEAD, Cut, choose_shapes, rebin, slots
from jaxtune.data.rows import TokenizedRows

# A packed row costs attention more than a padded one (its kernel looks up the segments).
WORTH = 0.95
# Rows whose windows are tried when shapes are chosen.
_SAMPLE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for.

    Attributes:
      batch_size: Rows a micro-batch, on all devices.
      accumulation: Micro-batches a window.
      devices: Over which the rows of a micro-batch are split.
      max_length: Longest row, tokens.
      seed: Of the order.
      packing: Strategy of `packing.pack`; None: rows are not packed.
      padding_free: Rows of a micro-batch follow each other in one, without padding.
      resplit: The rows of a window may be cut into other micro-batches.
      sampling: "random", "sequential" or "group_by_length".
      drop_last: Leave out the rows of an epoch that do not fill a micro-batch.
      collator: The user's own, which lays the rows out; None: the plan does.
    """

    batch_size: int
    accumulation: int
    devices: int = 1
    max_length: int
    seed: int
    packing: str | None = None
    padding_free: bool = False
    resplit: bool = True
    sampling: str = "random"
    drop_last: bool = False
    collator: Collator | None = None

    @property
    def window(self) -> int:
        """Rows of a whole window."""
        return self.batch_size * self.accumulation

    def order(self, lengths: np.ndarray, epoch: int) -> np.ndarray:
        """The numbers of an epoch's rows, in the order in which they are taken."""
        order = sampled(lengths, self.sampling, self.window, self.seed, epoch)
        dropped = len(order) % self.batch_size if self.drop_last else 0
        return order[: len(order) - dropped]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The layout of a run.

    Attributes:
      request: What was asked for.
      kind: "padded" is one document a row; "flat" a packed row a micro-batch and device.
      bins: The examples of an epoch: packed rows, or the rows themselves.
      lengths: Row lengths, ascending. Padded: one for each window; else one for each micro-batch.
      slots: Of a window's stacks, in the order of `lengths`; empty if padded.
    """

    request: Request
    kind: Literal["padded", "packed", "flat", "resplit"]
    bins: Bins
    lengths: tuple[int, ...]
    slots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that an epoch has a step."""
        if not self.micro_batches_per_epoch:
            raise ValueError(
                "an epoch must fill a micro-batch where `dataloader_drop_last` leaves out what "
                f"does not; got {len(self.bins)} rows for {self.request.batch_size}. Leave "
                "dataloader_drop_last out, or lower per_device_train_batch_size."
            )

    @property
    def micro_batches_per_epoch(self) -> int:
        """As the user asked for them, whatever the layout makes of them."""
        rows, batch = len(self.bins), self.request.batch_size
        return rows // batch if self.request.drop_last else -(-rows // batch)

    @property
    def windows_per_epoch(self) -> int:
        """Optimizer steps of a pass over the data."""
        rows = self.micro_batches_per_epoch * self.request.batch_size
        return windows_per_epoch(rows, self.request.batch_size, self.request.accumulation)

    def end(self, place: Place) -> Place:
        """The end of a place's epoch, whose windows are done or left out."""
        return dataclasses.replace(place, window=self.windows_per_epoch)

    @property
    def size(self) -> int:
        """Rows of a micro-batch's arrays."""
        whole = self.kind in ("padded", "packed")
        return self.request.batch_size if whole else self.request.devices

    @property
    def examples(self) -> int:
        """Packed rows, or rows, of an epoch."""
        return len(self.bins)

    def windows(self, rows: TokenizedRows, place: Place) -> Iterator[Window]:
        """The windows of an epoch, or of what is left of it, in the order of the request.

        Args:
          rows: The rows that the plan was made for.
          place: The epoch, and the windows of it to leave out.

        Yields:
          Windows of the examples; which ones a window holds does not depend on the layout.
        """
        chosen = _chosen(self.bins.tokens(), self.request, place.epoch)
        for number in range(place.window, len(chosen)):
            examples = [self.bins.pieces(example) for example in chosen[number].tolist()]
            after = Place(epoch=place.epoch, window=number + 1)
            yield dataclasses.replace(self.lay_out(rows, examples), after=after)

    def lay_out(self, rows: TokenizedRows, examples: Sequence[Sequence[Piece]]) -> Window:
        """A window of some examples.

        Args:
          rows: That the pieces are of.
          examples: Pieces of each.

        Returns:
          The window.
        """
        tokens = np.array([sum(stop - start for _, start, stop in its) for its in examples])
        asked = self.request
        if asked.collator is not None:
            batch, held = collated(
                rows,
                [its[0][0] for its in examples],
                asked.collator,
                size=asked.batch_size,
                micro_batches=asked.accumulation,
                lengths=self.lengths,
                granule=GRANULE,
            )
            return Window(batch=batch, tokens=held, rows=len(examples))
        if self.kind == "padded":
            batch = collate(
                rows,
                [its[0][0] for its in examples],
                asked.batch_size * asked.accumulation,
                next(length for length in self.lengths if length >= tokens.max()),
            )
        else:
            pieces = [
                [[piece for n in its for piece in examples[n]] for its in bins]
                for bins in self.cut(tokens)
            ]
            shapes = list(zip(self.slots, self.lengths, strict=True))
            batch = micro_batches(rows, pieces, size=self.size, shapes=shapes)
        return Window(batch=batch, tokens=int(tokens.sum()), rows=len(examples))

    def cut(self, tokens: Int[np.ndarray, " N"]) -> Cut:
        """The bins of a window: for each length, the examples that share a row.

        Args:
          tokens: Of each example of the window.

        Returns:
          Numbers of examples in the window.
        """
        if self.kind == "packed":
            return ([[n] for n in range(len(tokens))],)
        if self.kind == "resplit":
            return rebin(tokens.tolist(), self.lengths, self.request.devices)
        return _flat(tokens, self.lengths, self.request)

    def measure(self) -> tuple[float, float]:
        """Micro-batches a window, and the share of padding in them, over some windows."""
        micro, run, held = [], 0, 0
        tokens = self.bins.tokens()
        sample = _sample(tokens, self.request)
        for chosen in sample:
            held += int(tokens[chosen].sum())
            if self.kind == "padded":
                counts = [self.request.accumulation]
                lengths = [next(b for b in self.lengths if b >= tokens[chosen].max())]
            else:
                counts = [-(-len(bins) // self.size) for bins in self.cut(tokens[chosen])]
                lengths = self.lengths
            micro.append(sum(counts))
            run += sum(n * self.size * b for n, b in zip(counts, lengths, strict=True))
        return sum(micro) / len(sample), 1 - held / run


def describe(plan: Plan) -> str | None:
    """A line on the layout and the padding that is left; None for plainly padded rows."""
    if plan.kind == "padded":
        return None
    micro, padding = plan.measure()
    shapes = " or ".join(f"{plan.size} x {length:,}" for length in plan.lengths)
    if plan.kind == "packed":
        rows = len(np.unique(plan.bins.rows))
        return (
            f"{rows:,} rows packed into {len(plan.bins):,} ({plan.request.packing}), micro-batches "
            f"of {shapes} tokens, {padding:.1%} padding"
        )
    if plan.kind == "flat":
        return f"padding-free: micro-batches of {shapes} tokens, {padding:.1%} padding"
    before = _padded(plan.request, plan.bins).measure()[1]
    return (
        f"the rows of a step are re-split into micro-batches of {shapes} tokens: {micro:.1f} "
        f"instead of {plan.request.accumulation}, {padding:.1%} padding instead of {before:.1%} "
        "(resplit=False turns it off)"
    )


def make_plan(lengths: Int[np.ndarray, " rows"], request: Request) -> Plan:
    """Choose the layout and its static shapes.

    Args:
      lengths: Tokens of each row.
      request: What was asked for.

    Returns:
      A plan; "resplit" only where it saves a twentieth of the padded run.

    Raises:
      ValueError: `drop_last` leaves no row.
    """
    if request.packing is not None:
        bins = pack(lengths, request.max_length, request.packing)
        longest = rounded(int(bins.tokens().max()), request.max_length)
        return Plan(
            request=request,
            kind="packed",
            bins=bins,
            lengths=(longest,),
            slots=(request.accumulation,),
        )
    bins = one_a_bin(lengths)
    padded = _padded(request, bins)
    if request.collator is not None:
        return padded
    longest = rounded(int(lengths.max()), request.max_length)
    share = request.batch_size // request.devices
    sample = [lengths[chosen] for chosen in _sample(lengths, request)]
    if request.resplit:
        shapes = choose_shapes(
            [window.tolist() for window in sample], longest, share * longest, request.devices
        )
        window = request.batch_size * request.accumulation
        plan = Plan(
            request=request,
            kind="resplit",
            bins=bins,
            lengths=shapes,
            slots=slots(shapes, window, longest, request.devices),
        )
        return plan if request.padding_free or _cost(plan) < WORTH * _cost(padded) else padded
    if not request.padding_free:
        return padded
    shapes = _flat_shapes(sample, share * longest, request)
    return Plan(
        request=request,
        kind="flat",
        bins=bins,
        lengths=shapes,
        slots=(request.accumulation,) * len(shapes),
    )


def _padded(request: Request, bins: Bins) -> Plan:
    buckets = bucket_lengths(bins.tokens(), request.max_length)
    return Plan(request=request, kind="padded", bins=bins, lengths=buckets)


def _cost(plan: Plan) -> float:
    """Tokens a window, padding and the micro-batches' overhead with them, by its measure."""
    micro, padding = plan.measure()
    tokens = plan.bins.tokens()
    held = np.mean([tokens[chosen].sum() for chosen in _sample(tokens, plan.request)])
    return float(held) / (1 - padding) + micro * OVERHEAD


def rounded(length: int, limit: int) -> int:
    """A length that kernels like and near ones share, not above the limit; tokens."""
    return min(max(-(-length // GRANULE) * GRANULE, GRANULE), limit)


def _chosen(lengths: np.ndarray, request: Request, epoch: int) -> list[np.ndarray]:
    """The examples of each window of an epoch."""
    order, window = request.order(lengths, epoch), request.window
    return [order[start : start + window] for start in range(0, len(order), window)]


def _sample(lengths: np.ndarray, request: Request) -> list[np.ndarray]:
    """Windows of the first epoch to try shapes on; not its last, where rows may be missing."""
    found, window = _chosen(lengths, request, 0), request.window
    return found[: max(min(_SAMPLE // window, len(lengths) // window), 1)]


def _flat(tokens: np.ndarray, lengths: Sequence[int], request: Request) -> Cut:
    """Each device's rows of a micro-batch in one bin, of the least length that holds them all."""
    share = request.batch_size // request.devices
    cut: Cut = tuple([] for _ in lengths)
    for start in range(0, len(tokens), request.batch_size):
        stop = min(start + request.batch_size, len(tokens))
        bins = [list(range(n, min(n + share, stop))) for n in range(start, stop, share)]
        bins += [[] for _ in range(request.devices - len(bins))]
        most = max(int(tokens[rows].sum()) for rows in bins)
        cut[next(n for n, length in enumerate(lengths) if length >= most)].extend(bins)
    return cut


def _flat_shapes(sample: Sequence[np.ndarray], most: int, request: Request) -> tuple[int, ...]:
    """Two lengths: the greatest that may come, and the one that makes the sample cheapest."""

    def run(short: int) -> int:
        shapes = (short, most)
        cuts = [_flat(window, shapes, request) for window in sample]
        return sum(len(cut[0]) * short + len(cut[1]) * most for cut in cuts)

    tried = range(GRANULE, most, max(GRANULE, most // 16 // GRANULE * GRANULE))
    return (min(tried, key=run), most) if tried else (most,)
