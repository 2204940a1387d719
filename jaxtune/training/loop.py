"""The loop of a run: dispatch a step, bind its arrays, then read the metrics of the one before."""

import dataclasses
import math

import jax
import numpy as np
import optax
from flax import nnx

from jaxtune.adapters.counting import count_parameters
from jaxtune.data.plan import Plan
from jaxtune.data.rows import TokenizedRows
from jaxtune.errors import NonFiniteLossError
from jaxtune.language_model import LanguageModel
from jaxtune.models.placement import split_rows
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.checkpoint import folder_of, save_is_due
from jaxtune.training.config import SFTConfig
from jaxtune.training.interrupt import deferred_interrupt
from jaxtune.training.log import Log
from jaxtune.training.non_finite import first_non_finite
from jaxtune.training.offload_check import check_offload
from jaxtune.training.resume import Start
from jaxtune.training.saver import Saver
from jaxtune.training.step import make_train_step, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """The steps of one run, in order.

    Attributes:
      model: Its variables hold the arrays of the last step.
      args: The options.
      tx: The optimizer.
      plan: How the rows are laid out.
      rows: To train on.
      start: Where the run begins.
      handler: Its callbacks, state and control.
      log: Gets the metrics of each step.
      saver: Writes checkpoints; holds the optimizer's state.
    """

    model: LanguageModel
    args: SFTConfig
    tx: optax.GradientTransformation
    plan: Plan
    rows: TokenizedRows
    start: Start
    handler: CallbackHandler
    log: Log
    saver: Saver

    def run(self) -> None:
        """Make the steps that are left."""
        args, model, state, saver = self.args, self.model, self.handler.state, self.saver
        graphdef, trainable, frozen = split(model)
        step = make_train_step(
            graphdef,
            self.tx,
            accumulation=args.gradient_accumulation_steps,
            max_grad_norm=args.max_grad_norm,
            label_smoothing=args.label_smoothing_factor,
            neftune_noise_alpha=args.neftune_noise_alpha,
        )
        key, skipped, halted = self.start.dropout_key, self.start.window, np.bool_(False)
        # A CPU's own memory is the host's: there is nothing to move, and nothing to go wrong.
        untried = model.model.remat == "offload" and jax.default_backend() != "cpu"
        flops_a_token = 6 * count_parameters(model)[1]
        self.handler.tell("on_train_begin")
        if self._done():
            return
        for epoch in range(self.start.epoch, state.num_train_epochs):
            for number, window in enumerate(
                self.plan.windows(self.rows, epoch, skipped), start=skipped + 1
            ):
                batch = split_rows(window.batch, model.carried.mesh)
                if key is not None:
                    step_key = jax.random.fold_in(key, state.global_step)
                    batch = dataclasses.replace(batch, dropout_key=step_key)
                if untried:
                    check_offload(model, batch, self.plan.request.batch_size)
                    untried = False
                with deferred_interrupt():
                    trainable, saver.opt_state, metrics = step(
                        trainable, saver.opt_state, frozen, batch, halted
                    )
                    halted = metrics["halted"]
                    nnx.update(model, trainable)
                    self._count(epoch, number, window.tokens)
                    state.total_flos += flops_a_token * window.tokens
                    self.log.take(metrics, window.tokens, batch)
                saver.check()
                self.log.read(behind=1)
                self._after("on_step_end")
                if self._done():
                    break
            skipped = 0
            self._after("on_epoch_end")
            if self._done():
                return

    def save_at_exit(self) -> None:
        """Save the last whole step of a run that is being stopped, unless it is saved already."""
        state = self.handler.state
        if self.args.saves == "no" or self.saver.saved == state.global_step:
            return
        with deferred_interrupt():
            self.log.read()
            self._save()
            self.saver.wait()
        self.log.write(f"jaxtune: stopped and saved at step {state.global_step:,}")

    def explain(self, error: NonFiniteLossError) -> NonFiniteLossError:
        """Go back to the last finite step, save it, and say what is not finite after it."""
        state, args = self.handler.state, self.args
        state.global_step, state.epoch = self.log.forget()
        where = first_non_finite(
            self.model, error.batch, args.gradient_accumulation_steps, args.neftune_noise_alpha
        )
        kept = f"The model is as it was after step {state.global_step}"
        if args.saves != "no" and self.saver.saved != state.global_step:
            # The optimizer has taken the gradient in, and is of no more use.
            self.saver.save(folder_of(args), state, self.log.losses(), weights_alone=True)
            kept += f", and saved in checkpoint-{state.global_step}"
        message = f"{error} The first that is not finite is {where}. {kept}."
        return NonFiniteLossError(message, step=error.step, batch=error.batch)

    def _count(self, epoch: int, number: int, tokens: int) -> None:
        """Note a step of so many tokens, window `number` of an epoch."""
        state = self.handler.state
        micro_batches = math.ceil(len(self.plan.bins) / self.plan.request.batch_size)
        done = number * self.args.gradient_accumulation_steps
        state.global_step += 1
        state.epoch = epoch + min(done / micro_batches, 1.0)
        state.num_input_tokens_seen += tokens

    def _done(self) -> bool:
        state = self.handler.state
        return self.handler.control.should_training_stop or state.global_step >= state.max_steps

    def _after(self, event: str) -> None:
        """Call the callbacks after a step or an epoch, and do what is due or they ask for."""
        handler = self.handler
        handler.tell(event)
        if handler.control.should_log:
            handler.control.should_log = False
            self.log.force()
        if handler.control.should_save or save_is_due(event, handler.state, self.args.saves):
            self.log.read()  # the state that is saved holds the record of its own step
            handler.control.should_save = False
            self._save()
            if handler.listens_to("on_save"):
                self.saver.wait()
            handler.tell("on_save")

    def _save(self) -> None:
        self.saver.save(folder_of(self.args), self.handler.state, self.log.losses())
