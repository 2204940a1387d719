"""Log records of a run: metrics are read one step late, so that the device never waits."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import optax

from jaxtune.training.config import SFTConfig
from jaxtune.training.interrupt import deferred_interrupt
from jaxtune.training.progress import Progress
from jaxtune.training.state import TrainerState, TrainOutput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of the steps so far.

    Attributes:
      total: Their sum.
      unlogged: Those since the last record.
    """

    total: float = 0.0
    unlogged: tuple[float, ...] = ()


@dataclasses.dataclass(kw_only=True)
class _Waiting:
    """A step whose metrics have not been read yet.

    Attributes:
      step: Its number.
      epoch: Passes over the data up to it.
      tokens: In it.
      metrics: On the device.
      due: A record is made of it.
    """

    step: int
    epoch: float
    tokens: int
    metrics: dict[str, jax.Array]
    due: bool = False


class Log:
    """Turns device metrics into records `loss, grad_norm, learning_rate, epoch, step`."""

    def __init__(
        self,
        state: TrainerState,
        schedule: optax.Schedule | None,
        args: SFTConfig,
        tell: Callable[[dict[str, float]], None],
        losses: Losses = Losses(),
    ) -> None:
        """Open the bar.

        Args:
          state: Gets the records in its `log_history`; its step is where the run begins.
          schedule: For the learning rate of a record; None: a record has none.
          args: `disable_tqdm`.
          tell: Called with each record.
          losses: From the run that is resumed.
        """
        self.state = state
        self.schedule = schedule
        self.tell = tell
        self.progress = Progress(state.max_steps, done=state.global_step, disable=args.disable_tqdm)
        self.first = state.global_step
        self.waiting: list[_Waiting] = []
        self.total = losses.total
        self.unlogged = list(losses.unlogged)
        self.last: tuple[int, float, float] = (0, 0.0, 0.0)

    @property
    def colour(self) -> bool:
        """True where lines go to a terminal."""
        return self.progress.colour

    def write(self, line: str) -> None:
        """Print a line."""
        self.progress.write(line)

    def take(self, metrics: dict[str, jax.Array], tokens: int) -> None:
        """Take a step just dispatched; it is read when the next one has been."""
        state = self.state
        self.waiting.append(
            _Waiting(step=state.global_step, epoch=state.epoch, tokens=tokens, metrics=metrics)
        )

    def mark(self) -> None:
        """Make a record of the last step taken: once it is read, or now if it has been."""
        if self.waiting:
            self.waiting[-1].due = True
        elif self.unlogged:
            self._tell_new(self._record())

    def read(self, behind: int = 0) -> None:
        """Read the steps that are waiting, but for the last `behind`; blocks until they are done.

        An interrupt loses none of them: each is read once, whole.
        """
        while len(self.waiting) > behind:
            its = self.waiting[0]
            loss, grad_norm = float(its.metrics["loss"]), float(its.metrics["grad_norm"])
            with deferred_interrupt():
                del self.waiting[0]
                self.total += loss
                self.unlogged.append(loss)
                self.last = (its.step, its.epoch, grad_norm)
                self.progress.step(its.tokens)
                record = self._record() if its.due else None
            if record is not None:
                self._tell_new(record)

    def losses(self) -> Losses:
        """What a resumed run must know to go on with the same records."""
        return Losses(total=self.total, unlogged=tuple(self.unlogged))

    def _record(self) -> dict[str, float]:
        """The record of the last step read, over the steps since the record before."""
        number, epoch, grad_norm = self.last
        record = {"loss": float(np.mean(self.unlogged)), "grad_norm": grad_norm}
        if self.schedule is not None:
            record["learning_rate"] = float(np.asarray(self.schedule(number - 1)))
        record |= {"epoch": round(epoch, 4), "step": number}
        self.unlogged.clear()
        self.state.log_history.append(record)
        return record

    def _tell_new(self, record: dict[str, float]) -> None:
        self.progress.show(record["loss"])
        self.tell(record)

    def close(self) -> None:
        """Close the bar."""
        self.progress.close()

    def output(self, seconds: float, rows_a_step: int) -> TrainOutput:
        """The run's summary, a record of its own.

        Args:
          seconds: Wall time of the run; its rates leave out what was done before it.
          rows_a_step: Rows of one window.

        Returns:
          Steps, mean loss, and transformers' metric keys.
        """
        steps = self.state.global_step
        made = steps - self.first
        loss = self.total / max(steps, 1)
        metrics = {
            "train_runtime": round(seconds, 4),
            "train_samples_per_second": round(made * rows_a_step / seconds, 3),
            "train_steps_per_second": round(made / seconds, 3),
            "total_flos": self.state.total_flos,
            "train_loss": loss,
            "epoch": round(self.state.epoch, 4),
        }
        record = {**metrics, "step": steps}
        self.state.log_history.append(record)
        self.tell(record)
        return TrainOutput(steps, loss, metrics)
