"""The loss of a run as a picture, by matplotlib, which the extra `plot` brings."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.training.callbacks import TrainerCallback
from jaxtune.training.state import TrainerState

FILE = "loss.png"
_SMOOTHED = 30  # records from which a running mean is drawn


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def loss_figure(history: Sequence[Mapping[str, Any]]) -> Any:
    """Draw the losses of a run by its steps.

    Args:
      history: The log records of `trainer.state`.

    Returns:
      A `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: There is no loss to draw.
    """
    if not can_plot():
        raise ImportError(
            "a plot needs the package matplotlib, which is not installed. "
            'Run: pip install "jaxtune[plot]"'
        )
    from matplotlib.figure import Figure  # no pyplot: it has global state, and may want a display

    curves = {name: _curve(history, name) for name in _losses(history)}
    if not curves:
        raise ValueError("a plot needs a logged loss; there is none yet. Call train() first.")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, (steps, losses)) in enumerate(curves.items()):
        if name == "loss":
            many = len(losses) >= _SMOOTHED
            axes.plot(
                steps,
                losses,
                marker="" if len(losses) > 1 else "o",
                color="C0",
                alpha=0.35 if many else 1.0,
                label="training loss",
            )
            if many:
                mean = _running_mean(losses)
                axes.plot(steps, mean, color="C0", label="running mean")
        else:
            label = "validation loss" if name == "eval_loss" else name
            axes.plot(steps, losses, marker="o", markersize=4, color=f"C{number}", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _losses(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the losses in the records: `loss`, `eval_loss` and those of named eval sets."""
    names = [name for record in history for name in record]
    found = [n for n in names if n == "loss" or (n.startswith("eval_") and n.endswith("loss"))]
    return list(dict.fromkeys(found))


def _curve(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[name]) for record in history if name in record]
    return [step for step, _ in points], [loss for _, loss in points]


def _running_mean(losses: Sequence[float]) -> np.ndarray:
    """Of a tenth of the records, those at hand at the ends."""
    half = max(len(losses) // 20, 1)
    padded = np.concatenate([[0.0], np.cumsum(losses)])
    place = np.arange(len(losses))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(losses))
    return (padded[last] - padded[first]) / (last - first)


class LossPlot(TrainerCallback):
    """Writes `loss.png` after a run."""

    def __init__(self, folder: Path) -> None:
        """Write nothing yet; the folder is made if need be."""
        self._folder = folder

    def on_train_end(self, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        """Draw and write it, if anything was logged."""
        if _losses(state.log_history):
            self._folder.mkdir(parents=True, exist_ok=True)
            loss_figure(state.log_history).savefig(self._folder / FILE, dpi=120)
