"""What a person sees: lines and a bar in a terminal, a table in a notebook."""

import re
import sys
import types
from typing import Any

import pytest

from jaxtune import SFTConfig
from jaxtune.training import progress, reports
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.notebook_table import NotebookTable, table_html
from jaxtune.training.progress import Progress, in_notebook


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A kernel, and what is displayed in it, the last state of each display."""
    import IPython
    import IPython.display

    shown: list[str] = []

    class Handle:
        def __init__(self, html: Any) -> None:
            self.place = len(shown)
            shown.append(html.data)

        def update(self, html: Any) -> None:
            shown[self.place] = html.data

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", lambda html, **_: Handle(html))
    return shown


def cells(html: str) -> list[list[str]]:
    """The rows of a table."""
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row, re.S) for row in html.split("<tr")[1:]]


def run(**options: Any) -> None:
    args = SFTConfig(**options)
    handler = CallbackHandler(reports.own_callbacks(args), args)
    handler.state.max_steps, handler.state.num_train_epochs = 4, 1
    handler.tell("on_train_begin")
    for step in range(1, 5):
        handler.state.global_step, handler.state.epoch = step, step / 4
        handler.state.num_input_tokens_seen += 100
        handler.tell("on_step_end")
        handler.tell("on_log", logs={"loss": 3.0 / step, "epoch": step / 4, "step": step})
        if step % 2 == 0 and args.eval_strategy != "no":
            metrics = {"eval_loss": 1.0 / step, "eval_runtime": 0.5, "epoch": step / 4}
            handler.tell("on_log", logs={**metrics, "step": step})
            handler.tell("on_evaluate", metrics=metrics)
    handler.tell("on_log", logs={"train_runtime": 1.0, "train_loss": 1.5, "step": 4})
    handler.tell("on_train_end")


def test_a_terminal_is_no_notebook() -> None:
    assert not in_notebook()
    assert not any(isinstance(c, NotebookTable) for c in reports.own_callbacks(SFTConfig()))


def test_the_table_of_a_notebook_is_that_of_transformers(notebook: list[str]) -> None:
    run()
    (html,) = notebook
    assert cells(html) == [
        ["Step", "Training Loss"],
        ["1", "3.000000"],
        ["2", "1.500000"],
        ["3", "1.000000"],
        ["4", "0.750000"],
    ]
    assert re.search(r"\[4/4 00:00 < 00:00, Epoch 1\.00/1, [\d,]+ tokens/s\]", html)


def test_evaluations_have_a_column_and_the_rows(notebook: list[str]) -> None:
    run(eval_strategy="steps", eval_steps=2)
    (html,) = notebook
    assert cells(html) == [
        ["Step", "Training Loss", "Validation Loss"],
        ["2", "1.500000", "0.500000"],
        ["4", "0.750000", "0.250000"],
    ]


@pytest.mark.parity
@pytest.mark.slow  # it imports torch
def test_the_cells_are_drawn_by_transformers_rules() -> None:
    from transformers.utils.notebook import text_to_html_table

    rows = [["Step", "Training Loss", "A & B"], [1, 0.5, "No Log"], [20, 1e-7, 3]]
    theirs = cells(text_to_html_table(rows).replace("A & B", "A &amp; B"))
    assert cells(table_html(rows)) == theirs


def test_nothing_is_drawn_where_the_bar_is_off(notebook: list[str]) -> None:
    run(disable_tqdm=True)
    assert notebook == []


def test_a_notebook_has_no_second_bar(
    notebook: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(4, disable=False)
    shown.write("a line")
    shown.begin()
    shown.step(10)
    shown.show(1.0)
    shown.close()
    assert notebook == []
    assert "".join(capsys.readouterr()) == "a line\n"


def test_a_terminal_is_told_of_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    run(eval_strategy="steps", eval_steps=2)
    assert capsys.readouterr().out == (
        "jaxtune: step 2: eval_loss 0.5000\njaxtune: step 4: eval_loss 0.2500\n"
    )


def test_the_bar_comes_after_the_lines_and_shows_loss_rate_and_memory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "peak_memory", lambda: 3 * 2**30)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = Progress(3, done=1, disable=False)
    shown.write("a line")
    assert capsys.readouterr().err == ""
    shown.begin()
    shown.step(10)
    shown.step(10)
    shown.show(1.25)
    shown.close()
    bar = capsys.readouterr().err
    assert "compiling the first step" in bar
    assert "3/3" in bar
    assert re.search(r"loss 1\.2500, [\d,]+ tokens/s, 3\.0 GB", bar)
