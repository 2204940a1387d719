"""Log records of a run: metrics are read one step late, so that the device never waits."""

from collections.abc import Callable

import jax
import numpy as np
import optax

from jaxtune.training.config import SFTConfig
from jaxtune.training.progress import Progress
from jaxtune.training.state import TrainerState, TrainOutput


class Log:
    """Turns device metrics into records `loss, grad_norm, learning_rate, epoch, step`."""

    def __init__(
        self,
        state: TrainerState,
        schedule: optax.Schedule | None,
        args: SFTConfig,
        tell: Callable[[dict[str, float]], None],
    ) -> None:
        """Open the bar.

        Args:
          state: Gets the records in its `log_history`.
          schedule: For the learning rate of a record; None: a record has none.
          args: `logging_steps` and `disable_tqdm`.
          tell: Called with each record.
        """
        self.state = state
        self.schedule = schedule
        self.args = args
        self.tell = tell
        self.progress = Progress(state.max_steps, disable=args.disable_tqdm)
        self.waiting: tuple[int, float, int, dict[str, jax.Array]] | None = None
        self.losses: list[float] = []
        self.logged = 0
        self.forced = False
        self.last: tuple[int, float, float] = (0, 0.0, 0.0)

    @property
    def colour(self) -> bool:
        """True where lines go to a terminal."""
        return self.progress.colour

    def write(self, line: str) -> None:
        """Print a line."""
        self.progress.write(line)

    def step(self, metrics: dict[str, jax.Array], tokens: int) -> None:
        """Take a step just dispatched, and read the one before it."""
        self.flush()
        self.waiting = (self.state.global_step, self.state.epoch, tokens, metrics)

    def force(self) -> None:
        """Make a record of the last step, whatever its number."""
        if self.waiting is not None:
            self.forced = True
        elif self.logged < len(self.losses):
            self._record()

    def flush(self) -> None:
        """Read the step that is waiting; blocks until the device has finished it."""
        if self.waiting is None:
            return
        number, epoch, tokens, metrics = self.waiting
        self.waiting = None
        self.losses.append(float(metrics["loss"]))
        self.last = (number, epoch, float(metrics["grad_norm"]))
        self.progress.step(tokens)
        due = number % self.args.logging_steps == 0 or number == self.state.max_steps
        if due or self.forced:
            self._record()

    def _record(self) -> None:
        """The record of the last step read, over the steps since the record before."""
        number, epoch, grad_norm = self.last
        record = {"loss": float(np.mean(self.losses[self.logged :])), "grad_norm": grad_norm}
        if self.schedule is not None:
            record["learning_rate"] = float(np.asarray(self.schedule(number - 1)))
        record |= {"epoch": round(epoch, 4), "step": number}
        self.forced = False
        self.logged = len(self.losses)
        self.state.log_history.append(record)
        self.progress.show(record["loss"])
        self.tell(record)

    def close(self) -> None:
        """Close the bar."""
        self.progress.close()

    def output(self, seconds: float, rows_a_step: int) -> TrainOutput:
        """The run's summary, appended to the history.

        Args:
          seconds: Wall time of the run.
          rows_a_step: Rows of one window.

        Returns:
          Steps, mean loss, and transformers' metric keys.
        """
        steps = self.state.global_step
        loss = float(np.mean(self.losses)) if self.losses else 0.0
        metrics = {
            "train_runtime": round(seconds, 4),
            "train_samples_per_second": round(steps * rows_a_step / seconds, 3),
            "train_steps_per_second": round(steps / seconds, 3),
            "total_flos": self.state.total_flos,
            "train_loss": loss,
            "epoch": round(self.state.epoch, 4),
        }
        self.state.log_history.append({**metrics, "step": steps})
        return TrainOutput(steps, loss, metrics)
