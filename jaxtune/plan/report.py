"""What `jaxtune plan` prints: a bar a plan."""

import dataclasses
from collections.abc import Iterator, Sequence

from jaxtune.config import DecoderConfig, Remat
from jaxtune.plan.cards import Card
from jaxtune.plan.options import PlanRequest

GIB = 2**30
HEADING = "at the worst moment"
BAR = 40
BESIDE = 59  # characters of a row without its bar
NEARLY_ALL = 0.9
# A letter a part of the bar.
LETTERS = {"weights": "W", "LoRA": "L", "states": "S", "activations": "A", "logits": "V"}
HELD = {"weights": "weights", "LoRA": "LoRA with gradients", "states": "optimizer states"}
MEANING = {
    "none": "all that it reads (False)",
    "gate_up": "what attention and the MLP's two wide products gave",
    "attention": "what attention gave",
    "full": "the input of each layer (True)",
    "offload": 'the same, kept in the host\'s memory ("unsloth")',
    "least": "the same, the MLP in pieces of a row, the embedding looked up by the host",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one plan takes.

    Attributes:
      plan: Its name.
      parts: Bytes at the worst moment, by what they are.
      milliseconds: Of a step; None: unknown.
      fits: Into the card.
      largest_batch: Rows of that length that fit; 0: not even one.
      longest_row: Tokens of that many rows that fit, within the model's range.
    """

    plan: Remat
    parts: dict[str, float]
    milliseconds: float | None
    fits: bool
    largest_batch: int
    longest_row: int

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return sum(self.parts.values())


def lines(
    options: PlanRequest,
    config: DecoderConfig,
    card: Card,
    limit: float,
    rows: Sequence[Row],
    length: int = BAR,
) -> Iterator[str]:
    """The table in words.

    Args:
      options: What was asked for.
      config: Of the model.
      card: The GPU.
      limit: Bytes that may be used of it.
      rows: One a plan, the fastest first.
      length: Of a bar, in characters.

    Yields:
      Lines without their ends.
    """
    several = f"{options.accumulation} x " if options.accumulation > 1 else ""
    share = f"{100 * options.memory_fraction:.0f} %"
    yield (
        f"{options.model}, {options.bits}-bit weights, LoRA rank {options.rank}, {options.optim}: "
        f"{several}{options.batch} rows of {options.length:,} tokens"
    )
    yield f"{card.name}: JAX takes {share} of it, which leaves a step {limit / GIB:.1f} GiB"
    yield ""
    scale = max(row.peak for row in rows) / length
    yield (
        f"{'plan':<10}{'GiB':>6}  {HEADING:<{length}}{'ms a step':>11}  {'fits':<4}"
        f"{'most rows':>11}{'most tokens':>13}"
    )
    for row in rows:
        time = "-" if row.milliseconds is None else f"{row.milliseconds:,.0f}"
        yield (
            f"{row.plan:<10}{_gib(row.peak):>6}  {bar(row, limit, scale, length)}{time:>11}  "
            f"{'yes' if row.fits else 'no':<4}{row.largest_batch:>11,}{row.longest_row:>13,}"
        )
    yield ""
    held = rows[-1].parts | {"weights": rows[0].parts["weights"]}
    parts = ", ".join(
        f"{LETTERS[name]} {text} {held[name] / GIB:.2f}" for name, text in HELD.items()
    )
    yield f"{parts} GiB in every plan;"
    if rows[-1].parts["weights"] < rows[0].parts["weights"]:
        moved = (rows[0].parts["weights"] - rows[-1].parts["weights"]) / GIB
        yield f'"{rows[-1].plan}" has {moved:.2f} of the weights in host memory;'
    yield "A activations, V logits, | all that there is."
    yield (
        f"most rows: of {options.length:,} tokens; most tokens: a row, {options.batch} of them, "
        f"up to the model's {config.max_position_embeddings:,}."
    )
    yield ""
    yield "What the backward pass finds; the rest it computes again:"
    for row in rows:
        yield f"  {row.plan:<10}{MEANING[row.plan]}"
    yield ""
    yield from _advice(options, card, rows)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= GIB else f"{size / GIB:.2g}"


def bar_length(columns: int | None) -> int:
    """The length of a bar for which a row fits a terminal; `None` columns are no terminal."""
    return BAR if columns is None else min(BAR, max(len(HEADING), columns - BESIDE))


def bar(row: Row, limit: float, scale: float, length: int = BAR) -> str:
    """A letter for each `scale` bytes, and where the limit is if that is not beyond."""
    filled, text = 0.0, ""
    for part, size in row.parts.items():
        filled += size
        text += LETTERS[part] * (round(filled / scale) - len(text))
    text = f"{text:<{length}}"
    at = int(limit / scale)
    return f"{text[:at]}|{text[at + 1 :]}" if at < length else text


def _advice(options: PlanRequest, card: Card, rows: Sequence[Row]) -> Iterator[str]:
    """What to do with it."""
    fitting = [row for row in rows if row.fits]
    if fitting:
        yield f'use_gradient_checkpointing="auto" takes the first that fits: "{fitting[0].plan}".'
    else:
        least = rows[-1]
        cures = [f"--batch {least.largest_batch}"] if least.largest_batch else []
        cures += [f"--length {least.longest_row}"] if least.longest_row else []
        cures += ["--bits 4"] if options.bits == 16 else []
        yield f"No plan fits. What would: {' or '.join([*cures, 'a smaller model'])}."
    if options.memory_fraction < NEARLY_ALL:
        yield (
            "More of the card: XLA_PYTHON_CLIENT_MEM_FRACTION=.95 in the environment "
            "(--memory-fraction .95 here)."
        )
    if card.flops is None:
        yield "Times need a card's name: --gpu t4, l4, a100, h100 or h200."
        return
    yield "Bytes are within 5 % of three peaks measured on an H200, and predicted elsewhere."
    yield "Times are scaled from steps there by this card's rates; `jaxtune bench` measures one."
