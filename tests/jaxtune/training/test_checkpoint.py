"""Checkpoints: when they are due, that they are whole, and what a failure leaves behind."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from jaxtune import SFTConfig, TrainerCallback
from jaxtune.training import whole_folder as module
from jaxtune.training.checkpoint import write_checkpoint
from jaxtune.training.snapshot import take_snapshot
from jaxtune.training.state import TrainerControl, TrainerState
from jaxtune.training.whole_folder import clear_leftovers, remove_folder, whole_folder
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, records_of, trainer_of
from tests.oracles import Oracle, make_oracle
from tests.words import word_tokenizer


def write(folder: Path, text: str, error: BaseException | None = None) -> None:
    with whole_folder(folder) as empty:
        assert not any(empty.iterdir())
        (empty / "inner").mkdir()
        (empty / "inner" / "file").write_text(text)
        if error is not None:
            raise error


def contents(folder: Path) -> dict[str, str]:
    """Every file under a folder, hidden ones included."""
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_folder_is_made_and_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", "old")
    write(tmp_path / "a" / "b", "new")
    assert contents(tmp_path) == {"a/b/inner/file": "new"}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_folder(tmp_path: Path, error: Any) -> None:
    write(tmp_path / "b", "old")
    for target in ("b", "c"):
        with pytest.raises(type(error)):
            write(tmp_path / target, "half", error)
    assert contents(tmp_path) == {"b/inner/file": "old"}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_of_either_renaming_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write(tmp_path / "b", "old")
    rename, calls = Path.rename, []

    def failing_rename(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(PermissionError):
        write(tmp_path / "b", "new")
    assert contents(tmp_path) == {"b/inner/file": "old"}


def test_every_file_is_on_the_disk_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    sync, rename = module._sync, Path.rename
    monkeypatch.setattr(module, "_sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (done.append(f"-> {to.name}"), rename(self, to))
    )
    write(tmp_path / "b", "text")
    assert done[:2] == ["inner", "file"] or done[:2] == ["file", "inner"]
    assert done[-2:] == ["-> b", tmp_path.name]


def test_what_a_killed_process_left_is_cleared_and_a_replaced_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two renamings; in the middle of the body; and of a removal."""
    for name in ("b-1", "b-2", "b-3"):
        write(tmp_path / name, name)
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(OSError, match="full"):
        write(tmp_path / "b-2", "half", OSError("full"))
    remove_folder(tmp_path / "b-3")
    (tmp_path / "b-1").rename(tmp_path / ".b-1.1234.old")
    monkeypatch.undo()
    assert not {"b-1", "b-3"} & {path.name for path in tmp_path.iterdir()}
    clear_leftovers(tmp_path, "b-")
    assert contents(tmp_path) == {"b-1/inner/file": "b-1", "b-2/inner/file": "b-2"}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("saved"), initializer_range=0.3)


def test_state_and_options_are_json_whatever_they_hold(oracle: Oracle, tmp_path: Path) -> None:
    """No NaN, which JSON has not; NumPy's numbers and paths as what they mean."""
    record = {"loss": float("nan"), "grad_norm": float("inf"), "epoch": np.float32(0.5), "step": 3}
    state = TrainerState(global_step=3, log_history=[record])
    args = SFTConfig(output_dir=tmp_path, learning_rate=0.5)
    snapshot = take_snapshot(adapted(oracle), state)
    folder = write_checkpoint(tmp_path, snapshot, word_tokenizer(), args)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    held = [
        json.loads((folder / name).read_text(), parse_constant=refuse)
        for name in ("trainer_state.json", "training_args.json")
    ]
    assert held[0]["log_history"] == [{"loss": None, "grad_norm": None, "epoch": 0.5, "step": 3}]
    assert (held[1]["learning_rate"], held[1]["output_dir"]) == (0.5, str(tmp_path))
    theirs = transformers.TrainerState.load_from_json(str(folder / "trainer_state.json"))
    assert theirs.global_step == 3
    assert set(held[0]) == set(vars(transformers.TrainerState()))


class Watcher(TrainerCallback):
    """Notes the saves; asks for more."""

    def __init__(self, **asked: int) -> None:
        self.asked, self.saved = asked, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, step in self.asked.items():
            if state.global_step == step:
                setattr(control, name, True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        assert (folder / "adapter_model.safetensors").is_file()
        assert not control.should_save
        self.saved.append(state.global_step)


def test_epochs_and_callbacks_save(oracle: Oracle, tmp_path: Path) -> None:
    """13 rows make 4 steps an epoch; the run ends inside the second one, as in transformers."""
    watcher = Watcher(should_save=1, should_log=2)
    trainer = trainer_of(
        adapted(oracle),
        max_steps=5,
        logging_steps=10,
        output_dir=str(tmp_path),
        save_strategy="epoch",
        callbacks=[watcher],
    )
    trainer.train()
    assert watcher.saved == [1, 4, 5]
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step}" for step in (1, 4, 5)
    ]
    assert [record["step"] for record in records_of(trainer)] == [2, 5]


def test_asking_for_what_is_not_built_is_an_error() -> None:
    with pytest.raises(AttributeError, match="should_rest"):
        Watcher(should_rest=1).on_step_end(None, TrainerState(global_step=1), TrainerControl())


def test_saving_without_a_place_is_an_error(oracle: Oracle) -> None:
    with pytest.raises(ValueError, match="`output_dir` is None"):
        trainer_of(adapted(oracle)).save_model()


def test_a_place_that_is_no_folder_is_an_error_before_the_first_step(
    oracle: Oracle, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    trainer = trainer_of(adapted(oracle), output_dir=str(tmp_path / "out"))
    with pytest.raises(FileExistsError):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("how", ["error", "signal"])
def test_a_save_that_is_cut_off_leaves_whole_folders_and_a_whole_model(
    oracle: Oracle, tmp_path: Path, how: str
) -> None:
    """The tokenizer, written second, fails; or an interrupt arrives, and waits for the end."""
    model = adapted(oracle)
    tokenizer = model.carried.tokenizer
    save_pretrained = tokenizer.save_pretrained

    def failing(folder: Path) -> None:
        save_pretrained(folder)
        if "checkpoint-4" in folder.name and how == "error":
            raise OSError("disk full")
        if "checkpoint-4" in folder.name:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    tokenizer.save_pretrained = failing
    trainer = trainer_of(model, output_dir=str(tmp_path), save_steps=2)
    with pytest.raises(OSError if how == "error" else KeyboardInterrupt):
        trainer.train()
    step = trainer.state.global_step  # the run goes on while a checkpoint is written
    assert step >= 4
    written = {2} if how == "error" else {2, 4, step}
    whole = [f"checkpoint-{number}" for number in sorted(written)]
    assert sorted(path.name for path in tmp_path.iterdir()) == whole
    for name in whole:
        assert {file.name for file in (tmp_path / name).iterdir()} >= {
            "adapter_model.safetensors",
            "adapter_config.json",
            "tokenizer.json",
            "trainer_state.json",
            "training_args.json",
        }
    assert model.generate([[1, 5, 6]], max_new_tokens=2, eos_token_id=-1).shape == (1, 5)
    model.save_pretrained(tmp_path / "after")
    after = load_file(tmp_path / "after" / "adapter_model.safetensors")
    earlier = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    assert any(not np.array_equal(after[name], earlier[name]) for name in after)
