"""Saving a run as it goes on: copied between two steps, written beside them."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from jaxtune import processes
from jaxtune.language_model import LanguageModel
from jaxtune.training.best_model import name_best
from jaxtune.training.checkpoint import write_checkpoint
from jaxtune.training.config import SFTConfig
from jaxtune.training.interrupt import deferred_interrupt
from jaxtune.training.log import Losses
from jaxtune.training.manifest import Identity, Manifest
from jaxtune.training.resume import Start
from jaxtune.training.snapshot import take_snapshot
from jaxtune.training.state import TrainerState
from jaxtune.training.writer import Writer


class Saver:
    """Writes checkpoints, one at a time, while the run goes on; leaving it waits for the last.

    Every process of a run has one: arrays that are spread over them are gathered by all, and the
    first one writes.

    Attributes:
      args: The options of the run.
      opt_state: The optimizer's state after the last step; set by the loop.
      place: Where in the data the run goes on after it; likewise.
      saved: The step of the last checkpoint, or of the one that the run began from.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Any,
        args: SFTConfig,
        start: Start,
        *,
        identity: Callable[[], Identity],
    ) -> None:
        """Write nothing yet.

        Args:
          model: What is saved of a run, with the optimizer's state.
          tokenizer: Goes along.
          args: `save_only_model`, `save_total_limit` and `optim`.
          start: Where the run begins.
          identity: Of the run; called only if need be, since it reads all rows.
        """
        self.opt_state = start.opt_state
        self.place = start.place
        self.saved = start.state.global_step
        self.args = args
        self._model, self._tokenizer = model, tokenizer
        self._dropout_key = start.dropout_key
        self._identity = identity
        self._writer = Writer()

    def save(
        self,
        output_dir: Path,
        state: TrainerState,
        losses: Losses,
        *,
        weights_alone: bool = False,
    ) -> None:
        """Copy the run, and start to write `output_dir/checkpoint-{step}`.

        Waits for the write before it, so that there is one copy at most; and for the device.

        Args:
          output_dir: Created if need be.
          state: Where the run stands; its last step is in `losses`.
          losses: From the log.
          weights_alone: Leave out what only resuming needs, as `save_only_model` does.

        Raises:
          OSError: The write before this one failed, as may any other of its errors.
        """
        self._writer.wait()
        # Whether the one before is there, `name_best` asks on every process.
        processes.wait_for_all("the checkpoint before is written")
        name_best(output_dir, state)
        manifest = None
        if not (weights_alone or self.args.save_only_model):
            manifest = Manifest(
                identity=self._identity(),
                optim=self.args.optim,
                place=self.place,
                loss_total=losses.total,
                unlogged=list(losses.unlogged),
                arrays={},
            )
        with deferred_interrupt():
            snapshot = take_snapshot(
                self._model, state, self.opt_state, self._dropout_key, manifest
            )
            if processes.is_first():
                self._writer.start(
                    functools.partial(
                        write_checkpoint, output_dir, snapshot, self._tokenizer, self.args
                    )
                )
            self.saved = state.global_step

    def check(self) -> None:
        """Raise what a write that has ended raised; never waits."""
        self._writer.check()

    def wait(self) -> None:
        """Wait for the disk, and raise what the write raised."""
        self._writer.wait()

    def __enter__(self) -> "Saver":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the write in flight; where the run failed, its own error goes first."""
        try:
            self._writer.wait()
            if error is None:
                processes.wait_for_all("the last checkpoint is written")
        except Exception as failed:
            if error is None:
                raise
            warnings.warn(f"the last checkpoint was not written: {failed}", stacklevel=2)
        finally:
            self._writer.close()
