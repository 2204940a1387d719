"""`jaxtune bench --claims`: what is said of fine-tuning, against what was measured."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from jaxtune.bench.results import HF, HF_KEPT, OURS, Result, find
from jaxtune.bench.workloads import PEAK, RATE, TIME

NOT_MEASURED = "not measured"
LOSS = "loss and gradient"
Row = tuple[str, str, str]  # workload, system, quantity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that is said, and the rows of the results that it can be held against.

    Attributes:
      said: The claim.
      where: Model and tokens of the step, or what else was measured.
      kind: "times": theirs / ours; "less": 1 - ours / theirs; "most": ours itself.
      bound: That the claim needs, at least; of "most" at most.
      theirs: Rows of which the least counts; of another plan of ours where the claim is of a part.
      ours: Likewise.
      note: What the numbers leave open.
    """

    said: str
    where: str
    kind: Literal["times", "less", "most"]
    bound: float
    theirs: tuple[Row, ...] = ()
    ours: tuple[Row, ...] = ()
    note: str = ""


_8B, _1B = "8B, 2 x 2,048", "1B, 2 x 2,048"
_PLANS = ("8b_none", "8b_none_8bit", "8b_full", "8b_offload", "8b_least")
_OUR_PEAKS = tuple((plan, OURS, PEAK) for plan in _PLANS)

CLAIMS = (
    Claim(
        said="2 to 5 times faster",
        where=_8B,
        kind="times",
        bound=2.0,
        theirs=(("8b_none", HF_KEPT, TIME), ("8b_full", HF, TIME)),
        ours=(("8b_none", OURS, TIME),),
        note="their fastest setting takes 51.5 GiB",
    ),
    Claim(
        said="2 to 5 times faster",
        where=_1B,
        kind="times",
        bound=2.0,
        theirs=(("1b", HF, TIME),),
        ours=(("1b_none", OURS, TIME),),
    ),
    Claim(
        said="70 to 80 % less memory",
        where=_8B,
        kind="less",
        bound=0.7,
        theirs=(("8b_full", HF, PEAK),),
        ours=_OUR_PEAKS,
        note="Unsloth's own 6.79 GiB are 61 % less",
    ),
    Claim(
        said="70 to 80 % less memory",
        where=_1B,
        kind="less",
        bound=0.7,
        theirs=(("1b", HF, PEAK),),
        ours=(("1b_least", OURS, PEAK),),
    ),
    Claim(
        said="30 % less memory by offloaded checkpointing",
        where=_8B,
        kind="less",
        bound=0.3,
        theirs=(("8b_full", OURS, PEAK),),
        ours=(("8b_offload", OURS, PEAK),),
        note="of our plan that computes layers again; longer rows have more to offload",
    ),
    Claim(
        said="25 % less memory by 8-bit AdamW",
        where=f"{_8B}, LoRA",
        kind="less",
        bound=0.25,
        theirs=(("8b_none", OURS, PEAK),),
        ours=(("8b_none_8bit", OURS, PEAK),),
        note="an adapter's states are small; of a full fine-tuning the sizes say 37 %",
    ),
    Claim(said="4 times the context", where="8B, 80 GB", kind="times", bound=4.0),
    Claim(
        said="8B in 16 GB",
        where=_8B,
        kind="most",
        bound=14.7,
        ours=_OUR_PEAKS,
        note="planned by the compiler for the H200; not run on a card of that size",
    ),
    Claim(
        said="2 times faster by fused cross-entropy",
        where="4,096 x 4,096 x 128,256, loss and gradient",
        kind="times",
        bound=2.0,
        theirs=(("8b_cross_entropy", "torch eager", LOSS),),
        ours=(("8b_cross_entropy", OURS, LOSS),),
        note="its two products alone take 12.8 ms",
    ),
    Claim(
        said="2 times faster inference",
        where="8B, 1 x 128 tokens",
        kind="times",
        bound=2.0,
        theirs=(("8b_generate_1", HF, RATE),),
        ours=(("8b_generate_1", OURS, RATE),),
        note="transformers' own rate is not recorded",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, and what the results say.

    Attributes:
      claim: What is said.
      theirs: The best of the others, with its unit; or that it is not measured.
      ours: Likewise.
      seen: The ratio or the share; "-" where one is missing.
      holds: Whether the claim does; None: not measured.
    """

    claim: Claim
    theirs: str
    ours: str
    seen: str
    holds: bool | None


def judge(claim: Claim, results: Sequence[Result]) -> Verdict:
    """Hold a claim against the results.

    Args:
      claim: What is said.
      results: Of `read_results`.

    Returns:
      What they say.
    """
    units = {result.quantity: result.unit for result in results}
    theirs, ours = (_best(results, rows) for rows in (claim.theirs, claim.ours))

    def told(value: float | None, rows: tuple[Row, ...]) -> str:
        return NOT_MEASURED if value is None else f"{value:g} {units[rows[0][2]]}"

    seen, holds = "-", None
    if claim.kind == "most" and ours is not None:
        seen, holds = told(ours, claim.ours), ours <= claim.bound
    elif ours is not None and theirs is not None:
        rate = RATE in {row[2] for row in claim.ours}
        times = ours / theirs if rate else theirs / ours
        value = times if claim.kind == "times" else 1 - 1 / times
        seen = f"{value:.2f} times" if claim.kind == "times" else f"{100 * value:.0f} %"
        holds = value >= claim.bound
    baseline = f"{claim.bound:g} GiB" if claim.kind == "most" else told(theirs, claim.theirs)
    return Verdict(
        claim=claim, theirs=baseline, ours=told(ours, claim.ours), seen=seen, holds=holds
    )


def _best(results: Sequence[Result], rows: tuple[Row, ...]) -> float | None:
    """The best of the rows that are there: the largest rate, or the least of anything else."""
    values = [found for row in rows if (found := find(results, *row)) is not None]
    best = max if any(row[2] == RATE for row in rows) else min
    return best(values) if values else None


def answer(verdict: Verdict) -> str:
    """Whether the claim holds, in a word, and where that was seen."""
    if verdict.holds is None:
        return NOT_MEASURED
    return f"true at {verdict.claim.where}" if verdict.holds else "false"


def claim_lines(results: Sequence[Result]) -> Iterator[str]:
    """What is printed of all claims.

    Args:
      results: Of `read_results`.

    Yields:
      Lines without their ends.
    """
    yield f"{'claim':<45}{'measured':<44}{'theirs':>14}{'ours':>14}{'seen':>12}  verdict"
    for claim in CLAIMS:
        verdict = judge(claim, results)
        yield (
            f"{claim.said:<45}{claim.where:<44}{verdict.theirs:>14}{verdict.ours:>14}"
            f"{verdict.seen:>12}  {answer(verdict)}"
        )
        if claim.note:
            yield f"  ({claim.note})"
    yield ""
    yield "theirs: the best of transformers + peft, or another plan of ours; all on one H200."
