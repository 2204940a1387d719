"""The tables of README.md, made from the results."""

from collections.abc import Iterator, Sequence

from jaxtune.bench.claims import CLAIMS, NOT_MEASURED, answer, judge
from jaxtune.bench.results import HF, HF_KEPT, OURS, UNSLOTH, Result, find
from jaxtune.bench.workloads import WORKLOADS, Workload

BEGIN, END = "<!-- results -->", "<!-- end of results -->"


def block(results: Sequence[Result]) -> str:
    """What stands between `BEGIN` and `END`, these included.

    Args:
      results: Of `read_results`.

    Returns:
      Markdown.
    """
    return "\n".join([BEGIN, *_measured(results), "", *_claims(results), END])


def replaced(text: str, results: Sequence[Result]) -> str:
    """A page with its block made anew.

    Raises:
      ValueError: It has no block.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page must have {BEGIN} and, below it, {END}.")
    return before + block(results) + after


def _measured(results: Sequence[Result]) -> Iterator[str]:
    yield "One H200; what no row of `jaxtune/bench/results.csv` tells is not measured. Peaks of"
    yield "ours are the compiler's, those of others PyTorch's allocator's. A row is measured and"
    yield "written down, and these tables made anew, by `python -m tests.perf.record`."
    yield ""
    yield "| work | ours | Unsloth | transformers + peft | command |"
    yield "|---|---|---|---|---|"
    for work in WORKLOADS:
        peers = work.peers or work.name
        theirs = [_cell(results, work, peers, system) for system in (HF, HF_KEPT)]
        yield (
            f"| {work.label} | {_cell(results, work, work.name, OURS) or NOT_MEASURED} "
            f"| {_cell(results, work, peers, UNSLOTH)} | {theirs[0] or theirs[1]} "
            f"| `{work.command}` |"
        )


def _cell(results: Sequence[Result], work: Workload, name: str, system: str) -> str:
    """All that was measured of a workload."""
    found = {q: find(results, name, system, q.name) for q in work.quantities}
    return ", ".join(
        f"{q.name} {value:g} s" if q.unit == "s" else f"{value:,g} {q.unit}"
        for q, value in found.items()
        if value is not None
    )


def _claims(results: Sequence[Result]) -> Iterator[str]:
    yield "| claim | measured | theirs | ours | seen | verdict |"
    yield "|---|---|---|---|---|---|"
    for claim in CLAIMS:
        verdict = judge(claim, results)
        note = f" ({claim.note})" if claim.note else ""
        yield (
            f"| {claim.said} | {claim.where}{note} | {verdict.theirs} | {verdict.ours} "
            f"| {verdict.seen} | {answer(verdict)} |"
        )
