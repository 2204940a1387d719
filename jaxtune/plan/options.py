"""The options of `jaxtune plan`; imports no jax."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from jaxtune.bench.configs import BUILT_IN
from jaxtune.bench.options import Bits
from jaxtune.plan.cards import CARDS, card_of

AXES = ("data", "fsdp", "tensor")  # of `jaxtune.models.placement`, which needs jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Say which models, rows and lengths fit which GPU, and about how fast a step would be.

    It needs no GPU and no weights. One line a plan, that is, by how much the backward pass finds
    and how much it computes again: memory at the worst moment and what it is made of, the time of
    a step, whether it fits, and the largest batch and the longest row that would.

    Attributes:
      model: Built-in name (such as llama-3-8b), config.json or its folder, or hub id.
      batch: Rows a micro-batch, on each device.
      length: Tokens a row.
      gpu: t4, l4, a100, h100, h200, or memory such as 24GB (then without times).
      rank: LoRA rank of the seven projections.
      bits: Of a frozen projection's weight.
      optim: Name as in `optim` of the training arguments.
      accumulation: Micro-batches a step.
      mesh: Devices that train together, as data=2,fsdp=4: memory is that of one of them.
      compiled: With --mesh: compile the step for as many simulated devices, which needs no GPU and
        a minute or two, and say what the compiler finds.
      memory_fraction: Share of the card that JAX takes, as in XLA_PYTHON_CLIENT_MEM_FRACTION.
    """

    model: Annotated[str, arg(metavar="NAME")] = "llama-3-8b"
    batch: Annotated[int, arg(metavar="N")] = 2
    length: Annotated[int, arg(metavar="N")] = 2048
    gpu: Annotated[str, arg(metavar="NAME")] = "h200"
    rank: Annotated[int, arg(metavar="N")] = 16
    bits: Bits = 4
    optim: Annotated[str, arg(metavar="NAME")] = "adamw_8bit"
    accumulation: Annotated[int, arg(metavar="N")] = 1
    mesh: Annotated[str | None, arg(metavar="AXIS=N,...", help_behavior_hint="")] = None
    compiled: bool = False
    memory_fraction: Annotated[float, arg(metavar="SHARE")] = 0.75

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        for name, bound in {"batch": 1, "length": 2, "rank": 1, "accumulation": 1}.items():
            if getattr(self, name) < bound:
                raise ValueError(f"--{name} must be >= {bound}; got {getattr(self, name)}.")
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(
                f"--memory-fraction must be over 0 and at most 1; got {self.memory_fraction}."
            )
        if self.compiled and self.mesh is None:
            raise ValueError("--compiled is of a mesh; got none. Add --mesh fsdp=8, for example.")
        _ = self.sizes
        if card_of(self.gpu) is None:
            raise ValueError(
                f"--gpu must be one of {', '.join(CARDS)}, or memory such as 24GB; got "
                f"{self.gpu!r}."
            )
        if self.model not in BUILT_IN and "/" not in self.model and not Path(self.model).exists():
            raise ValueError(
                "--model must be a built-in name, a config.json or its folder, or a hub id "
                f"(owner/name); got {self.model!r}. The built-in names: {', '.join(BUILT_IN)}."
            )

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the mesh's axes; none without a mesh."""
        found: dict[str, int] = {}
        for part in (self.mesh or "").split(",") if self.mesh is not None else ():
            axis, _, size = part.strip().partition("=")
            if axis not in AXES or axis in found or not size.isdigit() or int(size) < 1:
                raise ValueError(
                    f"--mesh must be sizes of {', '.join(AXES)}, each once; got {self.mesh!r}. "
                    "Write --mesh data=2,fsdp=4."
                )
            found[axis] = int(size)
        return found
