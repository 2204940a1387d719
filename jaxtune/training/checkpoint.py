"""`checkpoint-{step}/` folders: whole or not there."""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from convert import write_json
from jaxtune.language_model import LanguageModel
from jaxtune.training.config import SFTConfig
from jaxtune.training.state import TrainerState

STATE_FILE = "trainer_state.json"
ARGUMENTS_FILE = "training_args.json"

# What a mount that cannot sync a folder answers (FUSE, some network drives).
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})


def save_is_due(event: str, state: TrainerState, saves: str) -> bool:
    """Whether a checkpoint is due, as transformers decides it.

    Args:
      event: "on_step_end" or "on_epoch_end".
      state: Where the run stands.
      saves: "no", "steps" (every `state.save_steps`, and after the last step) or "epoch".

    Returns:
      True if it is.

    Source: transformers `trainer_callback.py`, `DefaultFlowCallback`.
    """
    if event == "on_epoch_end":
        return saves == "epoch"
    last = state.global_step >= state.max_steps
    return saves == "steps" and (last or state.global_step % state.save_steps == 0)


def write_checkpoint(
    output_dir: Path, model: LanguageModel, tokenizer: Any, state: TrainerState, args: SFTConfig
) -> Path:
    """Write where a run stands: what was trained, the tokenizer, the state and the options.

    The optimizer's state, the PRNG and the data position are not in it: a run cannot be resumed
    from it yet.

    Args:
      output_dir: Gets the folder `checkpoint-{global_step}`; created if need be. A folder of that
        name is replaced once the new one is complete.
      model: Written by its `save_pretrained`.
      tokenizer: Likewise.
      state: Written as `trainer_state.json`, with transformers' keys.
      args: Written as `training_args.json` (transformers pickles them; a pickle is a program).

    Returns:
      The folder.
    """
    target = output_dir / f"checkpoint-{state.global_step}"
    with whole_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / STATE_FILE, _plain(dataclasses.asdict(state)))
        write_json(folder / ARGUMENTS_FILE, _plain(dataclasses.asdict(args)))
    return target


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Make a folder appear with all that the body writes, or not at all.

    The body writes into a hidden sibling, which is flushed to the disk and renamed. An older
    `target` is moved aside just before that, and back if the renaming fails.

    Args:
      target: The folder to create or replace; its parents are created.

    Yields:
      An empty folder to write into. It is gone afterwards, also on failure.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    fresh = target.with_name(f".{target.name}.{mark}.tmp")
    old = target.with_name(f".{target.name}.{mark}.old")
    fresh.mkdir()
    try:
        yield fresh
        _sync_below(fresh)
        _swap(fresh, target, old)
    finally:
        # Nothing is left of either after a success; an error here must not hide the body's.
        shutil.rmtree(fresh, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _swap(fresh: Path, target: Path, old: Path) -> None:
    """Rename `fresh` to `target`; POSIX replaces no folder that holds files, so it goes first."""
    try:
        target.rename(old)
    except FileNotFoundError:
        fresh.rename(target)
        return
    try:
        fresh.rename(target)
    except BaseException:
        old.rename(target)
        raise


def _sync_below(folder: Path) -> None:
    """Wait until every file under a folder, and the folders' names, are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """What JSON can hold: NumPy's scalars as numbers, paths as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
