"""Where a run stands, and what it returns; the fields of transformers' classes of these names."""

import dataclasses
from typing import Any, NamedTuple


class TrainOutput(NamedTuple):
    """What `train` returns.

    Attributes:
      global_step: Optimizer steps made.
      training_loss: Mean of the steps' losses.
      metrics: train_runtime (s), train_samples_per_second, train_steps_per_second, total_flos,
        train_loss, epoch.
    """

    global_step: int
    training_loss: float
    metrics: dict[str, float]


@dataclasses.dataclass
class TrainerState:
    """Where the run stands; changed by the trainer, read by callbacks.

    Attributes:
      epoch: Passes over the data so far.
      global_step: Optimizer steps made.
      max_steps: Optimizer steps to make.
      num_train_epochs: Passes to make.
      logging_steps: Steps between log records.
      train_batch_size: Rows a micro-batch.
      num_input_tokens_seen: Tokens trained on, padding left out.
      total_flos: Floating-point operations, 6 x parameters x tokens.
      log_history: The log records, oldest first.
      is_local_process_zero: This process prints.
      is_world_process_zero: This process writes.
    """

    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: int = 0
    logging_steps: int = 1
    train_batch_size: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0.0
    log_history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True


@dataclasses.dataclass
class TrainerControl:
    """What a callback may ask of the trainer.

    Attributes:
      should_training_stop: End the run after this step.
    """

    should_training_stop: bool = False


class TrainerCallback:
    """Base of callbacks, with transformers' method names.

    Each method gets the options, the state and the control, and by keyword what goes with it; an
    override takes `**kwargs` for what it does not use. The model's variables hold the arrays of
    the step just made: generating and saving are safe at any call.
    """

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the first step."""

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After an optimizer step; its loss is not known on the host yet."""

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a log record; `logs` is that record."""

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After a pass over the data."""

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the last step."""
