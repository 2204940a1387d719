"""The picture of a run's losses."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jaxtune import SFTConfig
from jaxtune.training import reports
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.loss_plot import FILE, loss_figure

HISTORY: list[dict[str, float]] = [
    *({"loss": 3.0 / n, "learning_rate": 0.1, "step": n} for n in range(1, 51)),
    {"eval_loss": 0.5, "eval_runtime": 1.0, "step": 25},
    {"eval_loss": 0.25, "step": 50},
    {"train_loss": 0.3, "step": 50},
]


def curves(history: list[dict[str, float]]) -> dict[str, tuple[list[float], list[float]]]:
    (axes,) = loss_figure(history).axes
    return {line.get_label(): (*map(list, line.get_data()),) for line in axes.lines}


def test_the_curves_are_the_logged_losses() -> None:
    found = curves(HISTORY)
    steps = list(range(1, 51))
    assert found["training loss"] == (steps, [3.0 / n for n in steps])
    assert found["validation loss"] == ([25, 50], [0.5, 0.25])
    assert found.keys() == {"training loss", "running mean", "validation loss"}
    mean = found["running mean"][1]
    assert mean[20] == pytest.approx(np.mean([3.0 / n for n in range(19, 24)]))
    assert mean[0] == pytest.approx(np.mean([3.0 / n for n in range(1, 4)]))


def test_each_curve_has_a_colour_of_its_own() -> None:
    (axes,) = loss_figure(HISTORY).axes
    colours = {line.get_label(): line.get_color() for line in axes.lines}
    assert colours["training loss"] != colours["validation loss"]


def test_few_records_are_drawn_as_they_are() -> None:
    assert curves(HISTORY[:3]).keys() == {"training loss"}


def test_without_a_record_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="needs a logged loss; there is none yet"):
        loss_figure([])


def test_a_picture_is_written_after_a_run(tmp_path: Path) -> None:
    args = SFTConfig(output_dir=tmp_path, disable_tqdm=True)
    handler = CallbackHandler(reports.own_callbacks(args), args)
    handler.tell("on_train_end")
    assert not (tmp_path / FILE).exists()
    handler.state.log_history.extend(HISTORY)
    handler.tell("on_train_end")
    assert (tmp_path / FILE).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_nothing_is_written_and_a_plot_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    args = SFTConfig(output_dir=tmp_path, disable_tqdm=True)
    assert reports.own_callbacks(args) == []
    with pytest.raises(ImportError, match=r"Run: pip install \"jaxtune\[plot\]\""):
        loss_figure(HISTORY)
