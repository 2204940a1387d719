"""Log records for TensorBoard and Weights & Biases: callbacks, each over one optional package."""

import dataclasses
import datetime
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from jaxtune import processes
from jaxtune.training.callbacks import TrainerCallback
from jaxtune.training.checkpoint import plain
from jaxtune.training.config import SFTConfig
from jaxtune.training.loss_plot import LossPlot, can_plot
from jaxtune.training.notebook_table import COSTS, NotebookTable
from jaxtune.training.progress import in_notebook
from jaxtune.training.state import TrainerState

REPORTERS = ("tensorboard", "wandb")  # the names of the packages, and of the extras that bring them


def own_callbacks(args: SFTConfig) -> list[TrainerCallback]:
    """The callbacks that a trainer has by itself: reports, `loss.png`, a notebook's table.

    Args:
      args: The options.

    Returns:
      Those that are asked for, or that this place has a use for; of several processes the first
      alone has any.
    """
    callbacks = report_callbacks(args)
    if not processes.is_first():
        return []
    if args.output_dir is not None and can_plot():
        callbacks.append(LossPlot(Path(args.output_dir)))
    if not args.disable_tqdm:
        callbacks.append(NotebookTable() if in_notebook() else EvaluationLines())
    return callbacks


def report_callbacks(args: SFTConfig) -> list[TrainerCallback]:
    """The callbacks that `report_to` asks for.

    Args:
      args: `report_to`, and where and under which name the reports go.

    Returns:
      One for each name.

    Raises:
      ValueError: A name is unknown.
      ImportError: A package is missing.
    """
    makers = {"tensorboard": TensorBoardReport, "wandb": WandbReport}
    return [makers[name](args) for name in _names(args.report_to)]


def _names(report_to: str | Sequence[str] | None) -> list[str]:
    """The reporters, each once; "all" is what is installed."""
    asked = [report_to] if isinstance(report_to, str) else list(report_to or ())
    if asked in ([], ["none"]):
        return []
    if asked == ["all"]:
        return [name for name in REPORTERS if importlib.util.find_spec(name) is not None]
    for name in asked:
        if name not in REPORTERS:
            raise ValueError(
                f"`report_to` must be 'none', 'all', or some of {list(REPORTERS)}; got {name!r}. "
                "Leave it out, and report in a TrainerCallback's on_log."
            )
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"`report_to`={name!r} needs the package {name}, which is not installed. "
                f'Run: pip install "jaxtune[{name}]"'
            )
    return list(dict.fromkeys(asked))


def tagged(record: Mapping[str, float]) -> dict[str, float]:
    """A record under transformers' tags: eval/loss of `eval_loss`, train/loss of `loss`.

    Args:
      record: From the log; its `step` is left out.

    Returns:
      {tag: value}.
    """
    tags = {}
    for name, value in record.items():
        if name != "step":
            part = "eval" if name.startswith("eval_") else "train"
            tags[f"{part}/{name.removeprefix('eval_')}"] = value
    return tags


def loggable(args: SFTConfig) -> dict[str, Any]:
    """The options as plain values, without access tokens."""
    options = plain(dataclasses.asdict(args))
    return {name: value for name, value in options.items() if not name.endswith("hub_token")}


class EvaluationLines(TrainerCallback):
    """Prints what an evaluation has found, above the bar."""

    def on_evaluate(self, _: Any, state: TrainerState, *__: Any, **more: Any) -> None:
        """Print a line."""
        found = [
            f"{name} {value:.4f}"
            for name, value in more["metrics"].items()
            if isinstance(value, float) and not name.endswith((*COSTS, "epoch"))
        ]
        tqdm.write(f"jaxtune: step {state.global_step:,}: {', '.join(found)}")


class TensorBoardReport(TrainerCallback):
    """Writes records as TensorBoard's scalars."""

    def __init__(self, args: SFTConfig) -> None:
        """Write nothing yet; `args.logging_dir`, or a folder below `output_dir`, gets the file."""
        self._folder = args.logging_dir
        if self._folder is None:
            # transformers' name of it
            now = datetime.datetime.now().strftime("%b%d_%H-%M-%S")
            name = args.run_name or f"{now}_{platform.node()}"
            self._folder = Path(args.output_dir or ".") / "runs" / name
        self._writer: Any = None

    def _opened(self) -> Any:
        """The open file."""
        if self._writer is None:
            from tensorboard.summary import Writer

            self._writer = Writer(str(self._folder))
        return self._writer

    def on_log(self, _: Any, state: TrainerState, *__: Any, **more: Any) -> None:
        """Write a record, also one of an evaluation outside a run."""
        writer = self._opened()
        record = more["logs"]
        for tag, value in tagged(record).items():
            writer.add_scalar(tag, value, record.get("step", state.global_step))
        writer.flush()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the file."""
        self._opened().close()
        self._writer = None


class WandbReport(TrainerCallback):
    """Sends records to Weights & Biases; a run that the user has begun is used, and left open."""

    def __init__(self, args: SFTConfig) -> None:
        """Begin nothing yet; `args.run_name` is the run's name."""
        self._config, self._name = loggable(args), args.run_name
        self._run: Any = None
        self._ours = False

    def _begun(self) -> Any:
        """The run, with the options as its configuration."""
        if self._run is None:
            import wandb

            self._ours = wandb.run is None
            run = wandb.init(name=self._name) if wandb.run is None else wandb.run
            run.config.update(self._config, allow_val_change=True)
            self._run = run
        return self._run

    def on_log(self, _: Any, state: TrainerState, *__: Any, **more: Any) -> None:
        """Send a record, also one of an evaluation outside a run."""
        record = more["logs"]
        step = record.get("step", state.global_step)
        self._begun().log({**tagged(record), "train/global_step": step})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Finish the run, if it was begun here."""
        run = self._begun()
        if self._ours:
            run.finish()
        self._run = None
