"""Log records of a run: metrics are read one step late, so that the device never waits."""

import dataclasses
import math
from collections.abc import Callable

import jax
import numpy as np
import optax

from jaxtune.data.batch import Batch, MicroBatches
from jaxtune.errors import NonFiniteLossError
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
      batch: Its rows; a search for what is not finite runs them again.
      due: A record is made of it.
    """

    step: int
    epoch: float
    tokens: int
    metrics: dict[str, jax.Array]
    batch: Batch | MicroBatches
    due: bool = False


class Log:
    """Turns device metrics into records `loss, grad_norm, learning_rate, epoch, step`.

    In float16 they have a `loss_scale` too.
    """

    def __init__(
        self,
        state: TrainerState,
        schedule: optax.Schedule | None,
        args: SFTConfig,
        tell: Callable[[dict[str, float]], None],
        losses: Losses = Losses(),
    ) -> None:
        """Read nothing yet.

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
        self.first, self.begun = state.global_step, state.epoch
        self.waiting: list[_Waiting] = []
        self.total = losses.total
        self.unlogged = list(losses.unlogged)
        self.last: tuple[int, float, float] = (0, 0.0, 0.0)
        self.loss_scale: float | None = None
        self.skipped = 0

    @property
    def colour(self) -> bool:
        """True where lines go to a terminal."""
        return self.progress.colour

    def begin(self) -> None:
        """Show the bar, after what is said at the start."""
        self.progress.begin()

    def write(self, line: str) -> None:
        """Print a line."""
        self.progress.write(line)

    def take(self, metrics: dict[str, jax.Array], tokens: int, batch: Batch | MicroBatches) -> None:
        """Take a step just dispatched; it is read when the next one has been."""
        state = self.state
        self.waiting.append(
            _Waiting(
                step=state.global_step,
                epoch=state.epoch,
                tokens=tokens,
                metrics=metrics,
                batch=batch,
            )
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

        Raises:
          NonFiniteLossError: The run must end: a loss or a gradient is not finite.
        """
        while len(self.waiting) > behind:
            its = self.waiting[0]
            loss, grad_norm = float(its.metrics["loss"]), float(its.metrics["grad_norm"])
            self._check_finite(its, loss, grad_norm)
            with deferred_interrupt():
                del self.waiting[0]
                self._read_scale(its.metrics, grad_norm)
                if math.isfinite(loss):  # else float16 has overflowed, and the step was left out
                    self.total += loss
                    self.unlogged.append(loss)
                self.last = (its.step, its.epoch, grad_norm)
                self.progress.step(its.tokens)
                record = self._record() if its.due else None
            if record is not None:
                self._tell_new(record)

    def _check_finite(self, done: _Waiting, loss: float, grad_norm: float) -> None:
        if not bool(done.metrics["halted"]):
            return
        rate = "" if self.schedule is None else f" at learning rate {self._rate(done.step):.3g}"
        what, cure = f"loss {loss}, gradient norm {grad_norm}", "a lower learning rate"
        if "loss_scale" in done.metrics:
            what = f"every step overflows float16, down to a loss scale of 1 ({what})"
            cure = "dtype='bfloat16' or 'float32'"
        raise NonFiniteLossError(
            f"a step's loss and gradient must be finite; got {what} in step {done.step}{rate}. "
            f"Try {cure}, or look at the rows of that step.",
            step=done.step,
            batch=done.batch,
        )

    def _read_scale(self, metrics: dict[str, jax.Array], grad_norm: float) -> None:
        """Of float16: the scale of the loss, and how many steps before this one were left out."""
        if "loss_scale" in metrics:
            self.loss_scale = float(metrics["loss_scale"])
            self.skipped = int(metrics["skipped"]) - (not math.isfinite(grad_norm))

    def _rate(self, step: int) -> float:
        """The learning rate of a step; one that is left out does not move the schedule."""
        return float(np.asarray(self.schedule(step - 1 - self.skipped))) if self.schedule else 0.0

    def forget(self) -> tuple[int, float]:
        """Drop the steps that are not read; return the number and epoch of the last one that is."""
        for step in self.waiting:
            self.state.num_input_tokens_seen -= step.tokens
        self.waiting.clear()
        return (self.last[0], self.last[1]) if self.last[0] else (self.first, self.begun)

    def losses(self) -> Losses:
        """What a resumed run must know to go on with the same records."""
        return Losses(total=self.total, unlogged=tuple(self.unlogged))

    def _record(self) -> dict[str, float]:
        """The record of the last step read, over the steps since the record before."""
        number, epoch, grad_norm = self.last
        # NaN where float16 overflowed in every step since the last record.
        loss = float(np.mean(self.unlogged)) if self.unlogged else math.nan
        record = {"loss": loss, "grad_norm": grad_norm}
        if self.schedule is not None:
            record["learning_rate"] = self._rate(number)
        if self.loss_scale is not None:
            record["loss_scale"] = self.loss_scale
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
