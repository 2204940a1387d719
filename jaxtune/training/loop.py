"""The loop of a run: dispatch a step, bind its arrays, then read the metrics of the one before."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from jaxtune import processes
from jaxtune.adapters.counting import count_parameters
from jaxtune.data.batch import Batch, MicroBatches
from jaxtune.data.collate import Place, Window
from jaxtune.data.plan import Plan
from jaxtune.data.stream_plan import StreamPlan
from jaxtune.errors import NonFiniteLossError
from jaxtune.language_model import LanguageModel
from jaxtune.layers.residuals import OFFLOADING
from jaxtune.models.placement import split_rows
from jaxtune.training.best_model import note_best
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.checkpoint import folder_of
from jaxtune.training.config import SFTConfig
from jaxtune.training.flow import ask_for_what_is_due
from jaxtune.training.interrupt import deferred_interrupt
from jaxtune.training.log import Log
from jaxtune.training.non_finite import first_non_finite
from jaxtune.training.offload_check import check_offload
from jaxtune.training.resume import Start
from jaxtune.training.saver import Saver
from jaxtune.training.step import Step, split
from jaxtune.training.stopping import stops_together
from jaxtune.training.train_rows import TrainRows, skipped_later


@dataclasses.dataclass(kw_only=True)
class Loop:
    """The steps of one run, in order, with what happens after each.

    Attributes:
      model: Its variables hold the arrays of the last step.
      args: The options.
      step: What is made of each window.
      plan: How the rows are laid out.
      rows: To train on.
      start: Where the run begins.
      handler: Its callbacks, state and control.
      log: Gets the metrics of each step.
      saver: Writes checkpoints; holds the optimizer's state, and the place in the data of the next
        step: where all windows of an epoch are done, its end is still to come.
      evaluate: Evaluates the model, and tells the callbacks.
      stops: Called once a step; raises what other processes were told to stop by.
    """

    model: LanguageModel
    args: SFTConfig
    step: Step
    plan: Plan | StreamPlan
    rows: TrainRows
    start: Start
    handler: CallbackHandler
    log: Log
    saver: Saver
    evaluate: Callable[[], dict[str, float]]
    stops: Callable[[], None] = dataclasses.field(init=False)

    def run(self) -> None:
        """Make the steps that are left; what stops them early leaves a checkpoint of the last one.

        Raises:
          NonFiniteLossError: It says what is not finite.
          ProcessLostError: Another process of the run has ended.
        """
        mesh = self.model.carried.mesh
        with (
            processes.explained_loss(),
            contextlib.closing(self.log),
            self.saver,
            stops_together(mesh) as self.stops,
        ):
            try:
                self._run_steps()
                self.log.read()
                for line in skipped_later(self.rows):
                    self.log.write(f"jaxtune: skipped {line}")
            except (KeyboardInterrupt, SystemExit):
                self._save_at_exit()
                raise
            except NonFiniteLossError as error:
                raise self._explain(error) from None

    def _run_steps(self) -> None:
        handler = self.handler
        handler.tell("on_train_begin")
        if self.args.eval_on_start and not handler.state.global_step:
            self.evaluate()
        if self.start.unfinished:  # the checkpoint was made while its step was being evaluated
            handler.control.should_evaluate = True
            handler.control.should_save = self.start.unsaved
            self._act()
        take_step = self._stepper()
        while self.saver.place.epoch < handler.state.num_train_epochs:
            if self._done() and not self.saver.place.window:
                return
            self._run_epoch(take_step)
            if self._done():
                return

    def _save_at_exit(self) -> None:
        """Save the last whole step of a run that is being stopped, unless it is saved already."""
        state = self.handler.state
        if self.args.saves == "no" or self.saver.saved == state.global_step:
            return
        with deferred_interrupt():
            self.log.read()
            self._save()
            self.saver.wait()
        self.log.write(f"jaxtune: stopped and saved at step {state.global_step:,}")

    def _explain(self, error: NonFiniteLossError) -> NonFiniteLossError:
        """Go back to the last finite step, save it, and say what is not finite after it."""
        state, args = self.handler.state, self.args
        state.global_step, state.epoch = self.log.forget()
        where = first_non_finite(
            self.model, error.batch, args.gradient_accumulation_steps, args.neftune_noise_alpha
        )
        kept = f"The model is as it was after step {state.global_step}"
        if args.saves != "no" and self.saver.saved != state.global_step:
            # The optimizer has taken the gradient in, and is of no more use.
            self._save(weights_alone=True)
            kept += f", and saved in checkpoint-{state.global_step}"
        message = f"{error} The first that is not finite is {where}. {kept}."
        return NonFiniteLossError(message, step=error.step, batch=error.batch)

    def _run_epoch(self, take_step: Callable[[Window], None]) -> None:
        """A pass over the data, or what is left of it, and its end."""
        handler, control = self.handler, self.handler.control
        control.should_epoch_stop = False
        handler.tell("on_epoch_begin")
        # The plan was made for these rows: of a stream, if they are one.
        windows = self.plan.windows(self.rows, self.saver.place)  # pyrefly: ignore[bad-argument-type]
        for window in windows if not self._done() else ():
            if handler.listens_to("on_step_begin"):
                self.log.read()
            for name in ("should_log", "should_evaluate", "should_save"):
                setattr(handler.control, name, False)
            handler.tell("on_step_begin")
            take_step(window)
            self.saver.check()
            self.log.read(behind=1)
            self.stops()
            self._after("on_step_end")
            if self._done() or handler.control.should_epoch_stop:
                break
        self.log.read()
        self._after("on_epoch_end")

    def _stepper(self) -> Callable[[Window], None]:
        """What makes the step of a window; the trained arrays go from one to the next inside."""
        model, state, saver = self.model, self.handler.state, self.saver
        _, trainable, frozen = split(model)
        step = self.step
        key, halted = self.start.dropout_key, np.bool_(False)
        # A CPU's own memory is the host's: there is nothing to move, and nothing to go wrong.
        untried = model.model.remat in OFFLOADING and jax.default_backend() != "cpu"
        flops_a_token = 6 * count_parameters(model)[1]

        def batch_of(window: Window) -> Batch | MicroBatches:
            batch = split_rows(window.batch, model.carried.mesh)
            if key is None:
                return batch
            step_key = jax.random.fold_in(key, state.global_step)
            return dataclasses.replace(batch, dropout_key=step_key)

        def take_step(window: Window) -> None:
            nonlocal trainable, untried, halted
            batch = batch_of(window)
            if untried:
                # Where it is not the user's choice, "full" with the whole batch does not fit.
                part = 4 if model.carried.auto_plan in OFFLOADING else 1
                check_offload(model, batch, self.plan.request.batch_size, part=part)
                untried = False
            with deferred_interrupt():
                trainable, saver.opt_state, metrics = step(
                    trainable, saver.opt_state, frozen, batch, halted
                )
                halted = metrics["halted"]
                nnx.update(model, trainable)
                saver.place = window.after
                self._count(window.tokens)
                state.total_flos += flops_a_token * window.tokens
                self.log.take(metrics, window.tokens, batch)

        return take_step

    def _count(self, tokens: int) -> None:
        """Note a step of so many tokens."""
        state, place = self.handler.state, self.saver.place
        accumulation = self.args.gradient_accumulation_steps
        # Of a stream's, as in transformers, each step is its share of the run's.
        whole = self.plan.micro_batches_per_epoch or state.max_steps * accumulation
        state.global_step += 1
        state.epoch = place.epoch + min(place.window * accumulation / whole, 1.0)
        state.num_input_tokens_seen += tokens

    def _done(self) -> bool:
        state = self.handler.state
        return self.handler.control.should_training_stop or state.global_step >= state.max_steps

    def _after(self, event: str) -> None:
        """Ask for what is due after a step or an epoch, then the callbacks; then do it."""
        handler = self.handler
        ask_for_what_is_due(event, self.args, handler.state, handler.control)
        handler.tell(event)
        if event == "on_epoch_end":
            self.saver.place = Place(epoch=self.saver.place.epoch + 1)
        elif handler.control.should_epoch_stop:
            self.saver.place = self.plan.end(self.saver.place)
        self._act()

    def _act(self) -> None:
        """Log, evaluate and save, if the control says so; the flags go down as it is done."""
        handler = self.handler
        if handler.control.should_log:
            handler.control.should_log = False
            self.log.mark()
        if handler.control.should_evaluate:
            self.log.read()
            better = note_best(self.args, handler.state, self.evaluate())
            handler.control.should_evaluate = False
            if self.args.saves == "best":
                handler.control.should_save |= better
        if handler.control.should_save:
            self.log.read()  # the state that is saved holds the record of its own step
            self._save()
            handler.control.should_save = False
            if handler.listens_to("on_save"):
                self.saver.wait()
            handler.tell("on_save")

    def _save(self, *, weights_alone: bool = False) -> None:
        self.handler.state.stateful_callbacks = self.handler.states()
        self.saver.save(
            folder_of(self.args),
            self.handler.state,
            self.log.losses(),
            weights_alone=weights_alone,
        )
