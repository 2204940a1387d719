"""`SFTTrainer`: supervised fine-tuning under TRL's names; it sequences pure functions."""

import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax

from jaxtune import processes, runtime
from jaxtune.data.plan import Plan, Request
from jaxtune.data.row_options import RowOptions
from jaxtune.data.stream_plan import StreamPlan
from jaxtune.data.tokenize import tokenize_dataset
from jaxtune.language_model import LanguageModel
from jaxtune.models.placement import devices_of
from jaxtune.notes import tell
from jaxtune.optim.loss_scale import dynamic_loss_scale
from jaxtune.optim.registry import create_optimizer
from jaxtune.optim.schedules import create_schedule
from jaxtune.training.agreement import (
    agreed_checkpoint,
    check_rows_agree,
    prepare_output,
    process_lines,
)
from jaxtune.training.best_model import settle_best
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.checkpoint import folder_of
from jaxtune.training.collators import host_collator, packs_rows
from jaxtune.training.control_options import with_derived
from jaxtune.training.data_report import report_lines
from jaxtune.training.embedding_rate import check_embedding_rate, embedding_schedule, rate_lines
from jaxtune.training.evaluation_methods import EvaluationMethods
from jaxtune.training.inputs import (
    Optimizers,
    check_evaluation,
    checked_args,
    checked_optimizers,
    checked_transformation,
    one_tokenizer,
    ready_model,
    row_limit,
)
from jaxtune.training.log import Log
from jaxtune.training.loop import Loop
from jaxtune.training.loss_plot import loss_figure
from jaxtune.training.manifest import Identity
from jaxtune.training.memory_plan import settle
from jaxtune.training.mesh_choice import settle_mesh
from jaxtune.training.optimizer_places import kernels_for
from jaxtune.training.reports import own_callbacks
from jaxtune.training.resume import Start, resume, start_anew
from jaxtune.training.run_numbers import run_numbers
from jaxtune.training.saver import Saver
from jaxtune.training.start_report import start_lines, state_of
from jaxtune.training.state import TrainerControl, TrainerState, TrainOutput
from jaxtune.training.step import split
from jaxtune.training.train_rows import (
    known_rows,
    plan_of,
    read_train_rows,
    row_options,
)


class SFTTrainer(EvaluationMethods):
    """Fine-tunes what is trainable in a model: adapters, or all of it.

    Loss: sum of token losses over the tokens of the whole accumulation window. Rows in the order
    of the Hugging Face trainer. After each step the new arrays are bound to the model, so that it
    can generate and be saved at any moment.

    Attributes:
      model: The model; what is trained in it changes as the run goes on.
      args: The options.
      state: Where the run stands.
      train_dataset: The tokenised rows.
      eval_dataset: Those of evaluations, or several sets by name, or None.
      optimizer: The optax transformation of the run, from `create_optimizer`.
      lr_scheduler: The schedule that records of the learning rate come from; None: unknown.
    """

    def __init__(  # noqa: PLR0913  TRL's face: scripts written for it pass these names.
        self,
        model: LanguageModel | str | Path,
        args: Any = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        compute_metrics: Callable[..., Any] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: Optimizers = (None, None),
        peft_config: Any = None,
        formatting_func: Callable[..., Any] | None = None,
        tokenizer: Any = None,
        dataset_text_field: str | None = None,
        max_seq_length: int | None = None,
        packing: bool | None = None,
        dataset_num_proc: int | None = None,
    ) -> None:
        """Check the request, then load, adapt and tokenise; nothing is compiled yet.

        Positional up to `processing_class`, as in TRL.

        Args:
          model: With something to train; or a hub id or folder, loaded in 16 bits and, without
            `peft_config`, fully fine-tuned.
          args: The options, an `SFTConfig` or those of trl or transformers; None: the defaults.
          data_collator: transformers' collators for text, which pad as this trainer does; or a
            function of a list of rows, called on the host, whose rows are not packed.
          train_dataset: A `datasets.Dataset`, an `IterableDataset`, a list of mappings or the path
            of a file: of texts, messages, prompts and completions, or token ids.
          eval_dataset: Like `train_dataset`, but no stream, or several of them by name.
          processing_class: TRL's newer name of `tokenizer`.
          compute_metrics: Function of an `EvalPrediction` that gives a dict of numbers.
          preprocess_logits_for_metrics: What its predictions are made of; see `evaluate`.
          callbacks: `TrainerCallback`s, ours or transformers', or their classes, called as the
            run goes on.
          optimizers: An optax transformation to train with, and the schedule that the learning
            rate of log records comes from. Without a transformation it is made of the options,
            with the schedule if there is one; with a transformation alone records have no rate.
          peft_config: A peft `LoraConfig` or a dict of its fields: the model gets that adapter,
            its first values drawn by `args.seed`.
          formatting_func: Makes the text of a row.
          tokenizer: None: the one that was loaded with the model.
          dataset_text_field: Overrides the option of this name.
          max_seq_length: Overrides `args.max_length`; tokens.
          packing: Overrides the option of this name.
          dataset_num_proc: Overrides the option of this name; threads.

        Raises:
          ValueError: Nothing to train, no tokenizer, no rows, rows that cannot be read, or an
            `embedding_learning_rate` without a trained embedding or head.
          TypeError: `args`, `optimizers` or `peft_config` is of a wrong type.
          NotBuiltYetError: An evaluation with a collator of one's own.
        """
        self._collator = host_collator(data_collator)
        self.args = with_derived(checked_args(args))
        check_evaluation(
            self.args, eval_dataset, compute_metrics, preprocess_logits_for_metrics, self._collator
        )
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self._given_optimizers = checked_optimizers(optimizers, self.args)
        self.optimizer, self.lr_scheduler = self._given_optimizers
        if train_dataset is None:
            raise ValueError(
                "`train_dataset` must be given; got None. "
                "Pass a datasets.Dataset or a list of mappings, [{'text': ...}, ...]."
            )
        handler = CallbackHandler([*own_callbacks(self.args), *(callbacks or ())], self.args)
        limit = _first(max_seq_length, self.args.row_limit)
        self.model = ready_model(model, peft_config, limit, self.args)
        check_embedding_rate(self.args, self.optimizer, self.model)
        self.tokenizer = one_tokenizer(tokenizer, processing_class, self.model)
        self.max_length = row_limit(limit, self.model)
        packs = packs_rows(_first(packing, self.args.packing), self._collator)
        self._packing = self.args.packing_strategy if packs else None
        options = row_options(
            self.args,
            dataset_text_field,
            formatting_func=formatting_func,
            max_length=self.max_length,
            threads=dataset_num_proc,
            vocab_size=self.model.config.vocab_size,
        )
        self._read_rows(train_dataset, eval_dataset, options)
        self.callback_handler = handler
        handler.more |= {"model": self.model, "processing_class": self.tokenizer}
        handler.more |= {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler}
        handler.tell("on_init_end")

    @property
    def state(self) -> TrainerState:
        """Where the run stands."""
        return self.callback_handler.state

    @property
    def control(self) -> TrainerControl:
        """What callbacks ask for."""
        return self.callback_handler.control

    @property
    def batch_size(self) -> int:
        """Rows of a micro-batch, on all devices."""
        return self.args.per_device_train_batch_size * devices_of(self.model.carried.mesh)

    def train(
        self, resume_from_checkpoint: bool | str | os.PathLike[str] | None = None
    ) -> TrainOutput:
        """Run to the end, or to the first callback that asks to stop.

        Ctrl-C and SIGTERM leave the model at the last whole step, and a checkpoint of it where
        `save_strategy` writes any, before KeyboardInterrupt or SystemExit goes on its way.

        Args:
          resume_from_checkpoint: True: go on from the last checkpoint in `args.output_dir`; or
            from the one in this folder, or with the adapter in it if it holds no more. The
            resumed run makes the very steps that the saved one would have made.

        Returns:
          Steps made, mean loss and rates.

        Raises:
          ValueError: There is no such checkpoint, or it is damaged or not one of this run; or a
            step does not fit into the device's memory.
          NonFiniteLossError: A loss or gradient was NaN or infinite; the model is left as it was
            before that step, with a checkpoint of it where `save_strategy` writes any. In float16
            a step that overflows is left out, and the loss scaled less; this is raised where no
            scale is left.
        """
        runtime.use_compile_cache()
        args, plan = self.args, self._plan()
        prepare_output(args)
        folder = agreed_checkpoint(resume_from_checkpoint, args.output_dir)
        per_epoch = plan.windows_per_epoch
        total = (
            args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        )
        handler = self.callback_handler
        handler.control = TrainerControl()
        tx = self._prepare_optimizer(total)
        identity = functools.cache(self._identity)
        check_rows_agree(identity, total, self.model.carried.mesh)
        start = self._start(folder, tx, total, identity)
        handler.state = state_of(start.state, args, total, _passes(total, plan))
        handler.restore(start.state.stateful_callbacks)
        handler.more |= {"optimizer": tx, "lr_scheduler": self.lr_scheduler}
        self.model.carried.training = functools.partial(run_numbers, args, self.state)
        log = Log(self.state, self.lr_scheduler, args, self._tell_log, start.losses)
        settled = settle(self.model, args, tx, plan, self.train_dataset, start)
        self._report_start(log, plan, folder, [*process_lines(), *settled.lines])
        saver = Saver(self.model, self.tokenizer, args, start, identity=identity)
        loop = Loop(
            model=self.model,
            args=args,
            step=settled.step,
            plan=plan,
            rows=self.train_dataset,
            start=start,
            handler=handler,
            log=log,
            saver=saver,
            evaluate=self.evaluate,
        )
        log.begin()
        started = time.perf_counter()
        loop.run()
        output = log.output(time.perf_counter() - started, plan.request.window)
        for line in settle_best(self.model, args, self.state):
            log.write(line)
        handler.tell("on_train_end")
        return output

    def add_callback(self, callback: Any) -> None:
        """Have a callback, or an instance of its class, called behind the others.

        Args:
          callback: A `TrainerCallback`, ours or transformers', or its class.
        """
        self.callback_handler.add(callback)

    def pop_callback(self, callback: Any) -> Any | None:
        """Take a callback out.

        Args:
          callback: It, or a class: the first one of it.

        Returns:
          The callback, or None if there is none.
        """
        return self.callback_handler.pop(callback)

    def remove_callback(self, callback: Any) -> None:
        """Take a callback, or the first one of a class, out; nothing happens if there is none."""
        self.callback_handler.pop(callback)

    def plot(self) -> Any:
        """The losses of the run so far by its steps; `output_dir/loss.png` after `train()`.

        Returns:
          A `matplotlib.figure.Figure`, which a notebook shows and `savefig` writes.

        Raises:
          ImportError: matplotlib, of the extra `plot`, is missing.
          ValueError: Nothing has been logged yet.
        """
        return loss_figure(self.state.log_history)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write what was trained and the tokenizer, loadable by peft and transformers.

        Args:
          output_dir: Where; None: `args.output_dir`.

        Raises:
          ValueError: Neither is given.
        """
        folder = Path(output_dir) if output_dir is not None else folder_of(self.args)
        self.model.save_pretrained(folder)
        if processes.is_first():
            self.tokenizer.save_pretrained(folder)

    def create_scheduler(self, num_training_steps: int) -> optax.Schedule:
        """The schedule of the options; override to train with another.

        Args:
          num_training_steps: Optimizer steps of the run.

        Returns:
          The learning rate by the number of updates made, 1/step.
        """
        args = self.args
        return create_schedule(
            args.lr_scheduler_type,
            args.learning_rate,
            args.warmup(num_training_steps),
            num_training_steps,
            args.lr_scheduler_kwargs,
        )

    def create_optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the run; override to train with another.

        Called by `train` once the run's schedule is `self.lr_scheduler`, which an override may
        use or replace: it is what records of the learning rate come from. As in transformers an
        override may return the optimizer, or set `self.optimizer`.

        Returns:
          `self.optimizer` if the constructor was given one, else that of the options.

        Raises:
          ValueError: `self.lr_scheduler` is needed and not set.
        """
        if self.optimizer is not None:
            return self.optimizer
        if self.lr_scheduler is None:
            raise ValueError(
                "the schedule must be there before its optimizer; `lr_scheduler` is None until "
                "train() sets it. Set trainer.lr_scheduler = trainer.create_scheduler(steps)."
            )
        args = self.args
        if not args.disable_tqdm:
            for line in rate_lines(args, self.model):
                tell(line)
        return create_optimizer(
            args.optim,
            self.lr_scheduler,
            embedding_learning_rate=embedding_schedule(args, self.lr_scheduler),
            b1=args.adam_beta1,
            b2=args.adam_beta2,
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
            kernels=kernels_for(split(self.model)[1], self.model.carried.mesh),
        )

    def _read_rows(self, train_dataset: Any, eval_dataset: Any, options: RowOptions) -> None:
        """Tokenise, and bring the model to its devices, for which the longest row counts."""
        self._tokenize = functools.partial(
            tokenize_dataset, tokenizer=self.tokenizer, options=options
        )
        # These two strategies split what is too long, and lose nothing.
        if self._packing not in (None, "bfd"):
            options = dataclasses.replace(options, max_length=sys.maxsize)
        self.train_dataset = read_train_rows(
            train_dataset, self.tokenizer, options, self.args.max_steps
        )
        self.eval_dataset = self.eval_rows(eval_dataset)
        settle_mesh(self.model, self.args, self._given_optimizers[0], self._longest)

    def _longest(self) -> int:
        """Tokens of the longest row of the run."""
        if self._packing is not None:
            return self.max_length
        return max(map(len, known_rows(self.train_dataset).rows))

    def _prepare_optimizer(self, total_steps: int) -> optax.GradientTransformation:
        """The schedule, then the optimizer, anew for each run."""
        self.optimizer, self.lr_scheduler = self._given_optimizers
        if self.optimizer is None and self.lr_scheduler is None:
            self.lr_scheduler = self.create_scheduler(total_steps)
        made = self.create_optimizer()
        self.optimizer = checked_transformation(self.optimizer if made is None else made)
        if self.model.dtype == jnp.float16:
            return dynamic_loss_scale(self.optimizer)
        return self.optimizer

    def _plan(self) -> Plan | StreamPlan:
        """How the rows are laid out; the same for the same rows and options."""
        args = self.args
        request = Request(
            batch_size=self.batch_size,
            accumulation=args.gradient_accumulation_steps,
            devices=devices_of(self.model.carried.mesh),
            max_length=self.max_length,
            seed=args.seed,
            packing=self._packing,
            padding_free=args.padding_free,
            resplit=args.resplit,
            sampling=args.sampling,
            drop_last=args.dataloader_drop_last,
            collator=self._collator,
        )
        return plan_of(self.train_dataset, request)

    def _start(
        self,
        folder: Path | None,
        tx: optax.GradientTransformation,
        total_steps: int,
        identity: Callable[[], Identity],
    ) -> Start:
        """Where the run begins: at step 0, or at a checkpoint."""
        args = self.args
        draws = self.model.has_dropout or bool(args.neftune_noise_alpha)
        if folder is None:
            return start_anew(self.model, tx, args.seed, draws=draws)
        return resume(
            folder,
            self.model,
            tx,
            optim=args.optim,
            total=total_steps,
            identity=identity(),
            draws=draws,
        )

    def _identity(self) -> Identity:
        """What decides which rows a step sees; reads all of them, of a stream the first."""
        rows = known_rows(self.train_dataset)
        return Identity(
            seed=self.args.seed,
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.args.gradient_accumulation_steps,
            rows=len(rows.rows),
            data=rows.digest(),
            packing=None if self._packing is None else f"{self._packing} to {self.max_length}",
            sampling=self.args.sampling,
            drop_last=self.args.dataloader_drop_last,
        )

    def _report_start(
        self, log: Log, plan: Plan | StreamPlan, resumed: Path | None, memory: Sequence[str]
    ) -> None:
        """Say what is about to be trained, and what was done to the rows."""
        for line in start_lines(self.model, self.args, plan, self.state, resumed, memory):
            log.write(line)
        rows, tokenizer = known_rows(self.train_dataset), self.tokenizer
        for line in report_lines(rows, tokenizer, self.max_length, colour=log.colour):
            log.write(line)

    def _tell_log(self, record: dict[str, float]) -> None:
        self.callback_handler.tell("on_log", logs=record)


class UnslothTrainer(SFTTrainer):
    """`SFTTrainer` under Unsloth's name: the options alone say what a run does."""


def _passes(steps: int, plan: Plan | StreamPlan) -> int:
    """Over the data; a stream has no length: as many as the steps take."""
    return sys.maxsize if plan.examples is None else math.ceil(steps / plan.windows_per_epoch)


def _first(given: Any, otherwise: Any) -> Any:
    """An argument of the trainer, or the option of its name."""
    return otherwise if given is None else given
