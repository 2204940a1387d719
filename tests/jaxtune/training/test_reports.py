"""Log records in TensorBoard's file and in Weights & Biases, read back by those libraries."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxtune import SFTConfig, SFTTrainer
from jaxtune.training import reports
from jaxtune.training.callbacks import CallbackHandler
from tests.words import ragged_rows

RECORDS: list[dict[str, float]] = [
    {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 0.1, "epoch": 0.5, "step": 1},
    {"eval_loss": 2.25, "epoch": 0.5, "step": 1},
    {"loss": 1.5, "grad_norm": 0.5, "learning_rate": 0.05, "epoch": 1.0, "step": 2},
]


def played(args: SFTConfig) -> None:
    """The events of a run of two steps."""
    handler = CallbackHandler(reports.report_callbacks(args), args)
    handler.tell("on_train_begin")
    for record in RECORDS:
        handler.state.global_step = 2  # records come late, and say their own step
        handler.tell("on_log", logs=record)
    handler.tell("on_train_end")


@pytest.mark.parametrize("given", ["none", None, [], ["none"]])
def test_nothing_is_reported_by_default(given: Any) -> None:
    assert reports.report_callbacks(SFTConfig(report_to=given)) == []
    assert SFTConfig().report_to == "none"


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    played(SFTConfig(report_to="tensorboard", logging_dir=tmp_path))
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    found = {
        tag: [(event.step, event.tensor_proto.float_val[0]) for event in read.Tensors(tag)]
        for tag in ("train/loss", "eval/loss", "train/learning_rate")
    }
    assert found["train/loss"] == [(1, 2.5), (2, 1.5)]
    assert found["eval/loss"] == [(1, 2.25)]
    assert found["train/learning_rate"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.05))]
    assert "train/step" not in read.Tags()["tensors"]


def test_the_folder_of_the_file_is_below_output_dir(tmp_path: Path) -> None:
    played(SFTConfig(report_to=["tensorboard"], output_dir=tmp_path, run_name="first"))
    assert list((tmp_path / "runs" / "first").glob("events.out.tfevents.*"))


WANDB = """
import json, sys
import wandb
from jaxtune import SFTConfig
from tests.jaxtune.training import test_reports

rows = []
begun = wandb.init
def init(**given):
    run = begun(**given)
    log = run.log
    run.log = lambda values: (rows.append(values), log(values))
    rows.append([run.name, run.settings.mode])
    return run
wandb.init = init
test_reports.played(SFTConfig(report_to="wandb", run_name="first", output_dir="out", seed=5))
print(json.dumps([rows, wandb.run is None]))
"""


@pytest.mark.slow  # a process of its own
def test_wandb_gets_what_was_logged_offline(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    environment["WANDB_SILENT"] = "true"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", WANDB],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (begun, *rows), finished = json.loads(done.stdout.splitlines()[-1])
    assert begun == ["first", "offline"]
    assert finished
    assert rows[0] == {
        "train/loss": 2.5,
        "train/grad_norm": 1.0,
        "train/learning_rate": 0.1,
        "train/epoch": 0.5,
        "train/global_step": 1,
    }
    assert rows[1] == {"eval/loss": 2.25, "train/epoch": 0.5, "train/global_step": 1}
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name)
    )
    message = r"`report_to`='wandb' needs .* Run: pip install \"jaxtune\[wandb\]\""
    with pytest.raises(ImportError, match=message):
        SFTTrainer("no/model", SFTConfig(report_to="wandb"), train_dataset=ragged_rows(1))
    (only,) = reports.report_callbacks(SFTConfig(report_to="all"))
    assert isinstance(only, reports.TensorBoardReport)


def test_an_unknown_reporter_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"`report_to` must be .*; got 'mlflow'\. Leave it out"):
        SFTTrainer("no/model", SFTConfig(report_to="mlflow"), train_dataset=ragged_rows(1))


def test_options_are_logged_without_tokens() -> None:
    logged = reports.loggable(SFTConfig(output_dir=Path("out"), learning_rate=1e-3))
    assert not [name for name in logged if "hub_token" in name]
    assert logged["learning_rate"] == 1e-3
    assert json.loads(json.dumps(logged)) == logged
