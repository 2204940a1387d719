"""`checkpoint-{step}/` folders: when they are due, what is in them, which of them stay."""

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from convert import write_json
from jaxtune.training.config import SFTConfig
from jaxtune.training.manifest import write_manifest
from jaxtune.training.saved_tree import write_tree
from jaxtune.training.snapshot import Snapshot
from jaxtune.training.state import TrainerState
from jaxtune.training.whole_folder import remove_folder, whole_folder

PREFIX = "checkpoint-"
STATE_FILE = "trainer_state.json"
ARGUMENTS_FILE = "training_args.json"
ADAPTER_FILE = "adapter_model.safetensors"
TREE_FOLDER = "resume"  # optimizer state and the rest, by Orbax

_NAME = re.compile(rf"{PREFIX}([0-9]+)")


def folder_of(args: SFTConfig) -> Path:
    """The folder of a run's checkpoints; a ValueError without one."""
    if args.output_dir is None:
        raise ValueError(
            "saving needs a folder; `output_dir` is None. Pass SFTConfig(output_dir=...)."
        )
    return Path(args.output_dir)


def write_checkpoint(output_dir: Path, snapshot: Snapshot, tokenizer: Any, args: SFTConfig) -> Path:
    """Write where a run stands; then remove the oldest checkpoints over `save_total_limit`.

    Killed at any moment, it leaves the checkpoints that were there, or the new one too.

    Args:
      output_dir: Gets the folder `checkpoint-{global_step}`; created if need be. A folder of that
        name is replaced once the new one is complete.
      snapshot: Its model is written by its `save_pretrained`, its state as `trainer_state.json`,
        with transformers' keys, and with a manifest its arrays as an Orbax tree.
      tokenizer: Written by its `save_pretrained`.
      args: Written as `training_args.json` (transformers pickles them; a pickle is a program).

    Returns:
      The folder.
    """
    target = output_dir / f"{PREFIX}{snapshot.state.global_step}"
    with whole_folder(target) as folder:
        snapshot.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / STATE_FILE, plain(dataclasses.asdict(snapshot.state)))
        write_json(folder / ARGUMENTS_FILE, plain(dataclasses.asdict(args)))
        if snapshot.manifest is not None:
            write_tree(folder / TREE_FOLDER, snapshot.arrays)
            adapter = [ADAPTER_FILE] if (folder / ADAPTER_FILE).is_file() else []
            write_manifest(folder, snapshot.manifest, [*adapter, STATE_FILE, TREE_FOLDER])
    _remove_old(target, snapshot.state, args.save_total_limit)
    return target


def checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, by their steps; each is whole."""
    found = [
        (int(match[1]), path)
        for path in output_dir.glob(f"{PREFIX}*")
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def _remove_old(newest: Path, state: TrainerState, limit: int | None) -> None:
    """Remove the checkpoints of the lowest steps, but for the newest one and the best."""
    if limit is None:
        return
    best = state.best_model_checkpoint
    kept = {newest.resolve()} | (set() if best is None else {Path(best).resolve()})
    found = checkpoints(newest.parent)
    removable = [path for path in found if path.resolve() not in kept]
    for path in removable[: max(0, len(found) - max(limit, len(kept)))]:
        remove_folder(path)


def plain(value: Any) -> Any:
    """What JSON can hold: NumPy's scalars as numbers, paths as text, NaN and infinities as null.

    Args:
      value: Of dictionaries, sequences and scalars.

    Returns:
      The like, of Python's own types.
    """
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
