"""GPU kernels out of a profiler's trace, and what each of them is for."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Event = Mapping[str, Any]

GEMM = "GEMM"
ATTENTION = "attention"
DEQUANTISATION = "dequantisation"
LORA = "LoRA"
ELEMENTWISE = "norm, GLU, elementwise"
COPIES = "copies"
OPTIMIZER = "optimizer"
OTHER = "other"
GROUPS = (GEMM, ATTENTION, DEQUANTISATION, LORA, ELEMENTWISE, COPIES, OPTIMIZER, OTHER)

# First match wins. "name": of the kernel or its HLO op; "scope": where in the program it was made
# (jax.named_scope and the functions on the way). A product inside an op that dequantises too is a
# product, so GEMM's names come before the scope of dequantisation.
RULES: tuple[tuple[str, str, str], ...] = (
    (ATTENTION, "name", r"cudnn|flash|sdpa|fmha|mha|attention"),
    (DEQUANTISATION, "name", r"nf4|dequant"),
    (LORA, "name", r"lora"),
    (LORA, "scope", r"\blora\b"),
    (ATTENTION, "scope", r"dot_product_attention|flash|sdpa"),
    (GEMM, "name", r"gemm|gemv|cutlass|nvjet|xmma|cublas"),
    (DEQUANTISATION, "scope", r"nf4|dequant"),
    (COPIES, "name", r"memcpy|memset|copy|dynamic[-_](update[-_])?slice"),
    (OPTIMIZER, "scope", r"\boptimizer\b"),
    (
        ELEMENTWISE,
        "name",
        r"fusion|norm|glu|cross_entropy|softmax|reduce|convert|broadcast|concatenate|select|transpose|add|mul",
    ),
)
OP_NAME = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="((?:[^"\\]|\\.)*)"', re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel's share of a step.

    Attributes:
      name: As the device calls it.
      group: One of `GROUPS`.
      ms: A step, all launches together.
      launches: A step.
    """

    name: str
    group: str
    ms: float
    launches: float


def kernels(events: Sequence[Event], op_names: Mapping[str, str], steps: int) -> list[Kernel]:
    """Add up the GPU's kernels.

    Only what ran on a GPU's streams counts; the trace shows the same time again under its ops,
    modules and scopes.

    Args:
      events: `traceEvents` of a Chrome trace; a kernel's `args` may say `hlo_op`, and its scope.
      op_names: Scope by HLO op, of `scopes_of`; for kernels whose `args` lack it.
      steps: Steps in the trace.

    Returns:
      The most expensive first.
    """
    streams = _streams(events)
    spent: defaultdict[tuple[str, str], float] = defaultdict(float)
    count: defaultdict[tuple[str, str], int] = defaultdict(int)
    for event in events:
        if event.get("ph") != "X" or (event.get("pid"), event.get("tid")) not in streams:
            continue
        name = str(event.get("name", ""))
        key = name, classify(name, event.get("args") or {}, op_names)
        spent[key] += float(event.get("dur") or 0)
        count[key] += 1
    found = [
        Kernel(name=name, group=group, ms=us / 1e3 / steps, launches=count[name, group] / steps)
        for (name, group), us in spent.items()
    ]
    return sorted(found, key=lambda kernel: -kernel.ms)


def _streams(events: Iterable[Event]) -> set[tuple[Any, Any]]:
    """(pid, tid) of the threads that stand for a GPU's streams."""
    processes: dict[Any, str] = {}
    threads: dict[tuple[Any, Any], str] = {}
    for event in events:
        if event.get("ph") != "M":
            continue
        name = str((event.get("args") or {}).get("name", ""))
        if event.get("name") == "process_name":
            processes[event.get("pid")] = name
        elif event.get("name") == "thread_name":
            threads[event.get("pid"), event.get("tid")] = name
    return {
        (pid, tid)
        for (pid, tid), name in threads.items()
        if "Stream" in name and "GPU" in processes.get(pid, "GPU")
    }


def classify(name: str, args: Mapping[str, Any], op_names: Mapping[str, str]) -> str:
    """The group of a kernel.

    Args:
      name: Of the kernel.
      args: Of its event; any of them may be missing.
      op_names: Scope by HLO op.

    Returns:
      One of `GROUPS`.
    """
    op = str(args.get("hlo_op", ""))
    said = (args.get(key) for key in ("tf_op", "name", "scope"))
    text = {
        "name": f"{name} {op}",
        "scope": " ".join(
            str(value) for value in (*said, op_names.get(op, op_names.get(name))) if value
        ),
    }
    for group, where, pattern in RULES:
        if re.search(pattern, text[where], re.IGNORECASE):
            return group
    return OTHER


def scopes_of(hlo_text: str) -> dict[str, str]:
    """{HLO op: where in the program it was made}, of a compiled program's text.

    Kernels inside a command buffer say only which buffer; but a fusion's kernel is named after its
    op, with underscores, and is found by that name too.
    """
    found = dict(OP_NAME.findall(hlo_text))
    return {re.sub(r"[.\-]", "_", op): scope for op, scope in found.items()} | found


def by_group(found: Iterable[Kernel]) -> dict[str, tuple[float, float]]:
    """{group: (ms, launches) a step}, every group, in their order."""
    sums = dict.fromkeys(GROUPS, (0.0, 0.0))
    for kernel in found:
        ms, launches = sums[kernel.group]
        sums[kernel.group] = ms + kernel.ms, launches + kernel.launches
    return sums
