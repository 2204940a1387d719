"""What is called as a run goes on: the base class of callbacks, and those of one trainer."""

from collections.abc import Iterable
from typing import Any

from jaxtune.training.state import TrainerControl, TrainerState


class TrainerCallback:
    """Base of callbacks, with transformers' method names.

    Each method gets the options, the state and the control, and by keyword what goes with it; an
    override takes `**kwargs` for what it does not use, and may return a control that replaces the
    trainer's. The model's variables hold the arrays of the step just made: generating and saving
    are safe at any call.
    """

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Before the first step."""

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After an optimizer step; its loss is not known on the host yet."""

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After a log record; `logs` is that record."""

    def on_save(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After a checkpoint was written to `output_dir/checkpoint-{global_step}`.

        The run waits for the disk only where a callback overrides this; else it goes on meanwhile.
        """

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After a pass over the data, or the part of it that the last step ended."""

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After the last step."""


def listens_to(event: str, callback: Any) -> bool:
    """Whether a callback, ours or transformers', overrides the method of an event."""
    name = getattr(getattr(callback, event, None), "__qualname__", "")
    return name != f"{TrainerCallback.__name__}.{event}"


class CallbackHandler:
    """The callbacks of a trainer, with what each call gets.

    Attributes:
      callbacks: In the order of their calls.
      state: Where the run stands.
      control: What callbacks ask for.
    """

    def __init__(self, callbacks: Iterable[Any], args: Any, **more: Any) -> None:
        """Call nothing yet.

        Args:
          callbacks: `TrainerCallback`s, ours or transformers'.
          args: The options.
          more: Goes to every call by keyword.
        """
        self.callbacks = list(callbacks)
        self.state = TrainerState()
        self.control = TrainerControl()
        self._args = args
        self._more = more

    def tell(self, event: str, **more: Any) -> None:
        """Call the method of an event on each callback; what one returns becomes the control."""
        for callback in self.callbacks:
            answer = getattr(callback, event)(
                self._args, self.state, self.control, **self._more, **more
            )
            self.control = self.control if answer is None else answer

    def listens_to(self, event: str) -> bool:
        """Whether any callback overrides the method of an event."""
        return any(listens_to(event, callback) for callback in self.callbacks)
