"""The options of `jaxtune bench`; imports no jax."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from jaxtune.bench.configs import BUILT_IN
from jaxtune.config import Remat

Bits = Literal[4, 16]
FEWEST_STEPS = 10
# What is measured in place of a step, and the options that say how.
MODES = {
    "generate": (
        *("model", "rank", "bits", "kernels", "steps", "output"),
        *("rows", "prompt", "new_tokens"),
    ),
    "claims": (),
    "notebook": ("model", "rank", "bits", "length", "output", "weights", "dataset", "tokenizer"),
}
# A step has no use for them.
OF_MODES = ("rows", "prompt", "new_tokens", "weights", "dataset", "tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure one whole training step: LoRA on random weights, at a model's real shapes.

    Nothing but a config.json is downloaded, and that only for a hub id. Printed are the step's
    time, what the device could do at best, memory, and compilation. Instead, --generate
    measures the answers of the same model, and --notebook the way from the start of a process to a
    saved adapter.

    Attributes:
      model: Built-in name (such as llama-3-8b), config.json or its folder, or hub id.
      batch: Rows a micro-batch.
      length: Tokens a row.
      rank: LoRA rank of the seven projections.
      bits: Of a frozen projection's weight.
      plan: full: the backward pass computes each layer again; none: it finds everything kept;
        offload: again, from inputs kept in host memory; least: that, with the MLP in pieces and
        the embedding in host memory.
      packing: Rows packed from documents of a few hundred tokens; else one document a row.
      accumulation: Micro-batches a step.
      steps: Timed steps, after three to warm up.
      optimizer: Name as in `optim` of the training arguments.
      kernels: Backend of every op.
      output: JSON file to write the numbers to.
      profile: Folder to write a profiler's trace to; its kernels are printed.
      generate: Measure greedy answers, not a step: time to the first token, and tokens/s.
      rows: Prompts at a time; with --generate, each number in turn.
      prompt: Tokens of a prompt, with --generate.
      new_tokens: Of an answer, with --generate.
      claims: Print what is said of fine-tuning against what is recorded; measures nothing.
      notebook: Measure 60 steps of 2 x 4 rows with all that surrounds them, started twice: with no
        compiled programs, and with those of the first start.
      weights: The model's folder, with --notebook; one of random weights is written there if there
        is none.
      dataset: File of rows, with --notebook: instruction, input and output, or text.
      tokenizer: Folder of a tokenizer to go with random weights, with --notebook.
    """

    model: Annotated[str, arg(metavar="NAME")] = "llama-3-8b"
    batch: Annotated[int, arg(metavar="N")] = 2
    length: Annotated[int, arg(metavar="N")] = 2048
    rank: Annotated[int, arg(metavar="N")] = 16
    bits: Bits = 4
    plan: Remat = "full"
    packing: bool = False
    accumulation: Annotated[int, arg(metavar="N")] = 1
    steps: Annotated[int, arg(metavar="N")] = FEWEST_STEPS
    optimizer: Annotated[str, arg(metavar="NAME")] = "adamw_torch"
    kernels: Annotated[str, arg(metavar="NAME")] = "auto"
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    profile: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    generate: bool = False
    rows: Annotated[tuple[int, ...], arg(metavar="N")] = (1, 8)
    prompt: Annotated[int, arg(metavar="N")] = 128
    new_tokens: Annotated[int, arg(metavar="N")] = 128
    claims: bool = False
    notebook: bool = False
    weights: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    dataset: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    tokenizer: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        self._check_mode()
        least = {"batch": 1, "length": 2, "rank": 1, "accumulation": 1, "steps": FEWEST_STEPS}
        least |= {"prompt": 1, "new_tokens": 2}
        if not self.rows or min(self.rows) < 1:
            raise ValueError(f"--rows must be numbers >= 1; got {list(self.rows)}.")
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"--{_spelt(name)} must be >= {bound}; got {getattr(self, name)}.")
        if self.model not in BUILT_IN and "/" not in self.model and not Path(self.model).exists():
            raise ValueError(
                "--model must be a built-in name, a config.json or its folder, or a hub id "
                f"(owner/name); got {self.model!r}. The built-in names: {', '.join(BUILT_IN)}."
            )
        if self.output is not None and (self.output.is_dir() or not self.output.parent.is_dir()):
            raise ValueError(
                f"--output must be a file in a folder that exists; got {self.output}. "
                "Make the folder, or name a file."
            )
        if self.profile is not None and self.profile.exists() and not self.profile.is_dir():
            raise ValueError(
                f"--profile must be a folder, or a name that is free; {self.profile} is a file."
            )

    def _check_mode(self) -> None:
        """Refuse an option that would change nothing."""
        modes = [mode for mode in MODES if getattr(self, mode)]
        if len(modes) > 1:
            raise ValueError(f"one thing is measured at a time; got --{' and --'.join(modes)}.")
        for field in dataclasses.fields(self):
            name = field.name
            used = name in MODES[modes[0]] if modes else name not in OF_MODES
            if used or name in modes or getattr(self, name) == field.default:
                continue
            what = f"--{modes[0]}" if modes else "a step"
            raise ValueError(
                f"--{_spelt(name)} changes nothing of what {what} measures; got "
                f"{getattr(self, name)!r}. Leave it out."
            )


def _spelt(name: str) -> str:
    """An option as it is typed."""
    return name.replace("_", "-")
