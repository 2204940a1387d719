"""What the devices of a mesh send to each other in a compiled program, read from its text."""

import dataclasses
import math
import re
from collections.abc import Mapping

# Of the bytes that an operation gives, what each of n devices receives where they pass parts on
# around a ring.
_SHARES = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda _: 1.0,
}
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}
_COMMENT = re.compile(r"/\*.*?\*/")  # the numbers of a long tuple's parts
_NAME = r"%?([\w.-]+)"
_COMPUTATION = re.compile(rf"^(?:ENTRY )?{_NAME} \(.*\{{$")
_COLLECTIVE = re.compile(rf"= (\(?[^=]*?) ({'|'.join(_SHARES)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}|replica_groups=\[(?:\d+,)*(\d+)\]<=")
_LOOP = re.compile(rf"\bwhile\(.*body={_NAME}")
_TIMES = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(rf"\b(?:to_apply|calls)={_NAME}")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRUE_FALSE = re.compile(rf"(?:true|false)_computation={_NAME}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Computation:
    """A function of a program.

    Attributes:
      sent: Bytes that a device receives in it, by the operation.
      called: Functions that it calls, and how often.
      chosen: Sets of functions of which it calls one.
    """

    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    called: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    chosen: list[list[str]] = dataclasses.field(default_factory=list)


def bytes_received(program: str) -> dict[str, float]:
    """Bytes that each device receives from others in one run of a program.

    A loop counts as often as the compiler knows that it turns, and once where it does not know; of
    branches the one that receives most counts.

    Args:
      program: The text of a compiled program, `jax.jit(f).lower(...).compile().as_text()`.

    Returns:
      {"all-gather": bytes, ...}; operations that do not occur are left out.
    """
    computations, entry = _parsed(program)
    return _total(entry, computations)


def _parsed(program: str) -> tuple[dict[str, _Computation], str]:
    """The functions by name, and the name of the one that is run."""
    computations: dict[str, _Computation] = {}
    here, entry = _Computation(), ""
    for line in _COMMENT.sub("", program).splitlines():
        begins = _COMPUTATION.match(line)
        if begins:
            here = computations[begins[1]] = _Computation()
            entry = begins[1] if line.startswith("ENTRY") else entry
            continue
        _note(line, here)
    return computations, entry


def _note(line: str, here: _Computation) -> None:
    """What an instruction sends and calls."""
    found = _COLLECTIVE.search(line)
    if found:
        size = _nbytes(found[1], started=found[3] is not None and found[2] == "all-gather")
        received = size * _SHARES[found[2]](_devices(line))
        here.sent[found[2]] = here.sent.get(found[2], 0.0) + received
    loop = _LOOP.search(line)
    if loop:
        times = _TIMES.search(line)
        here.called.append((loop[1], int(times[1]) if times else 1))
        return
    branches = _BRANCHES.search(line)
    names = re.findall(_NAME, branches[1]) if branches else _TRUE_FALSE.findall(line)
    if names:
        here.chosen.append(names)
    here.called.extend((name, 1) for name in _CALLED.findall(line))


def _devices(line: str) -> int:
    """Of the groups that an operation joins."""
    groups = _GROUPS.search(line)
    if groups is None:
        return 1
    return int(groups[2]) if groups[2] else len(groups[1].split(","))


def _nbytes(shapes: str, *, started: bool) -> int:
    """Of the arrays in a type; the first half of what an asynchronous gather holds is its input."""
    sizes = [
        _BYTES.get(kind, max(1, int(re.sub(r"\D", "", kind) or 8) // 8))
        * math.prod(int(n) for n in shape.split(",") if n)
        for kind, shape in _ARRAY.findall(shapes)
    ]
    return sum(sizes[len(sizes) // 2 :] if started else sizes)


def _total(name: str, computations: Mapping[str, _Computation]) -> dict[str, float]:
    its = computations.get(name, _Computation())
    sent = dict(its.sent)
    parts = [(_total(other, computations), times) for other, times in its.called]
    parts += [
        (max((_total(other, computations) for other in names), key=lambda d: sum(d.values())), 1)
        for names in its.chosen
    ]
    for part, times in parts:
        for kind, size in part.items():
            sent[kind] = sent.get(kind, 0.0) + times * size
    return sent
