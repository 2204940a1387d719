"""What is called as a run goes on: the base class of callbacks, and those of one trainer."""

import warnings
from collections.abc import Iterable
from typing import Any

from jaxtune.training.state import TrainerControl, TrainerState

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_step_end",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_log",
    "on_prediction_step",
)
# Events of transformers that have no moment here: micro-batches, clipping and update are one
# program on the device, and its gradients never leave it.
INSIDE_A_STEP = ("on_substep_end", "on_pre_optimizer_step", "on_optimizer_step")
_CONTROL = TrainerControl.__name__


class TrainerCallback:
    """Base of callbacks, with transformers' method names.

    Each method gets the options, the state and the control, and by keyword `model`,
    `processing_class`, `optimizer`, `lr_scheduler` and what goes with it; an override takes
    `**kwargs` for what it does not use, and may return a control that replaces the trainer's. The
    model's variables hold the arrays of the step just made: generating and saving are safe at any
    call. A callback with a method `state()`, which returns {"args": {...}, "attributes": {...}},
    is kept in checkpoints: a resumed run sets those attributes again.
    """

    def on_init_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After the trainer was made."""

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Before the first step."""

    def on_epoch_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Before a pass over the data, or what is left of one."""

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """Before an optimizer step.

        The host waits for the step before only where a callback overrides this.
        """

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After an optimizer step; its loss is not known on the host yet.

        The control's flags say what is due now, and may be changed.
        """

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After a log record; `logs` is that record.

        A step's record is made while the next one runs, unless an evaluation, a checkpoint, the
        end of the epoch or another callback's `on_step_begin` comes first.
        """

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After a batch of an evaluation was handed to the device."""

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After an evaluation of a data set; `metrics` is its record."""

    def on_predict(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl | None:
        """After `predict`; `metrics` are its own."""

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
        """After the last step, and after the best model was loaded."""


def listens_to(event: str, callback: Any) -> bool:
    """Whether a callback, ours or transformers', overrides the method of an event."""
    name = getattr(getattr(callback, event, None), "__qualname__", None)
    return name not in (None, f"{TrainerCallback.__name__}.{event}")


class CallbackHandler:
    """The callbacks of a trainer, with what each call gets.

    Attributes:
      callbacks: In the order of their calls.
      state: Where the run stands.
      control: What callbacks ask for.
      more: Goes to every call by keyword.
    """

    def __init__(self, callbacks: Iterable[Any], args: Any, **more: Any) -> None:
        """Call nothing yet.

        Args:
          callbacks: `TrainerCallback`s, ours or transformers', or their classes.
          args: The options.
          more: Goes to every call by keyword.

        Raises:
          TypeError: One is no callback.
          ValueError: One listens to what happens inside a step.
        """
        self.callbacks: list[Any] = []
        self.state = TrainerState()
        self.control = TrainerControl()
        self.more = more
        self._args = args
        for callback in callbacks:
            self.add(callback)

    def add(self, callback: Any) -> None:
        """Add a callback, or an instance of a class of them, behind the others."""
        callback = callback() if isinstance(callback, type) else callback
        if not any(callable(getattr(callback, event, None)) for event in EVENTS):
            raise TypeError(
                "a callback must have methods of jaxtune.TrainerCallback; got "
                f"{type(callback).__name__}. Derive it from TrainerCallback."
            )
        for event in INSIDE_A_STEP:
            if listens_to(event, callback):
                raise ValueError(
                    "a callback must not wait for what happens inside a step, which is one "
                    f"program on the device; got {type(callback).__name__}.{event}. Use "
                    "on_step_begin or on_step_end, or a loop over jaxtune.functional."
                )
        self.callbacks.append(callback)

    def find(self, callback: Any) -> Any | None:
        """The callback itself, or the first one of a class; None: there is none."""
        for known in self.callbacks:
            if isinstance(known, callback) if isinstance(callback, type) else known is callback:
                return known
        return None

    def pop(self, callback: Any) -> Any | None:
        """Take out what `find` finds."""
        found = self.find(callback)
        if found is not None:
            self.callbacks = [known for known in self.callbacks if known is not found]
        return found

    def tell(self, event: str, **more: Any) -> None:
        """Call the method of an event on each callback; what one returns becomes the control."""
        for callback in list(self.callbacks):
            method = getattr(callback, event, None)
            if method is None:
                continue
            answer = method(self._args, self.state, self.control, **self.more, **more)
            self.control = self.control if answer is None else answer

    def listens_to(self, event: str) -> bool:
        """Whether any callback overrides the method of an event."""
        return any(listens_to(event, callback) for callback in self.callbacks)

    def states(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callbacks and of the control, as transformers does."""
        found: dict[str, list[Any]] = {}
        for callback in self.callbacks:
            state = getattr(callback, "state", None)
            if callable(state):
                found.setdefault(type(callback).__name__, []).append(state())
        flat = {name: its[0] if len(its) == 1 else its for name, its in found.items()}
        return {**flat, _CONTROL: self.control.state()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Set what a checkpoint kept; a warning names what no callback of this run takes.

        The arguments that a callback was made with stay those of this run.

        Args:
          saved: From `states`.
        """
        for name, states in saved.items():
            if name == _CONTROL:
                continue
            its = [callback for callback in self.callbacks if type(callback).__name__ == name]
            listed = states if isinstance(states, list) else [states]
            for callback, state in zip(its, listed, strict=False):
                for attribute, value in state.get("attributes", {}).items():
                    setattr(callback, attribute, value)
            if not its:
                warnings.warn(
                    f"the checkpoint holds the state of a callback {name}; this run has none.",
                    stacklevel=4,
                )
