"""The options of `jaxtune quickstart`; imports no jax."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import arg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Fine-tune a model and see that it worked, in one command.

    Without options, a tiny Llama that ships with jaxtune learns a new task: about a minute on two
    CPU cores, no network. With --model and --dataset, a model and rows of your own.

    Attributes:
      model: Hub id or folder of a model to tune instead; goes with --dataset.
      dataset: JSON lines with a "text" column, to tune --model on. A tenth of them is held out.
      output: Folder that the adapter is written to.
      steps: Optimizer steps; by default 200 for the tiny model, 60 for another.
      seed: Of the adapter's start, the held-out rows and the order of the others.
    """

    model: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    dataset: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    output: Annotated[Path, arg(metavar="FOLDER")] = Path("quickstart_adapter")
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    seed: Annotated[int, arg(metavar="N")] = 0

    def __post_init__(self) -> None:
        """Check what can be checked before anything is loaded."""
        if (self.model is None) != (self.dataset is None):
            given, missing = ("model", "dataset") if self.dataset is None else ("dataset", "model")
            raise ValueError(
                f"--model and --dataset go together; got --{given} alone. Add --{missing}, or "
                "leave both out to tune the tiny model that ships with jaxtune."
            )
        for name, value, least in (("steps", self.steps, 1), ("seed", self.seed, 0)):
            if value is not None and value < least:
                raise ValueError(f"--{name} must be >= {least}; got {value}.")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(
                f"--output must be a folder, or a name that is free; {self.output} is a file."
            )
