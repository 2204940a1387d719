"""`SFTTrainer`: supervised fine-tuning under TRL's names; it sequences pure functions."""

import contextlib
import dataclasses
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from tqdm.auto import tqdm

from jaxtune import runtime
from jaxtune.adapters.counting import count_parameters
from jaxtune.data.collate import Place, windows_per_epoch
from jaxtune.data.plan import Plan, Request, describe
from jaxtune.data.stream_plan import StreamPlan
from jaxtune.language_model import LanguageModel
from jaxtune.models.placement import devices_of, split_rows
from jaxtune.optim.registry import create_optimizer
from jaxtune.optim.schedules import create_schedule
from jaxtune.training.checkpoint import PREFIX, save_is_due
from jaxtune.training.collators import host_collator, packs_rows
from jaxtune.training.config import SFTConfig
from jaxtune.training.data_report import report_lines
from jaxtune.training.embedding_rate import check_embedding_rate, embedding_schedule, rate_lines
from jaxtune.training.inputs import (
    Optimizers,
    checked_args,
    checked_optimizers,
    checked_transformation,
    one_tokenizer,
    ready_model,
    refuse_unbuilt,
    row_limit,
)
from jaxtune.training.interrupt import deferred_interrupt, exit_on_sigterm
from jaxtune.training.log import Log
from jaxtune.training.manifest import Identity
from jaxtune.training.offload_check import check_offload
from jaxtune.training.resume import (
    Start,
    find_checkpoint,
    resume,
    start_anew,
)
from jaxtune.training.saver import Saver
from jaxtune.training.state import (
    TrainerControl,
    TrainerState,
    TrainOutput,
    listens_to_saves,
)
from jaxtune.training.step import make_train_step, split
from jaxtune.training.train_rows import (
    known_rows,
    plan_of,
    read_train_rows,
    row_options,
    skipped_later,
)
from jaxtune.training.whole_folder import clear_leftovers


class SFTTrainer:
    """Fine-tunes what is trainable in a model: adapters, or all of it.

    Loss: sum of token losses over the tokens of the whole accumulation window. Rows in the order
    of the Hugging Face trainer. After each step the new arrays are bound to the model, so that it
    can generate and be saved at any moment.

    Attributes:
      model: The model; what is trained in it changes as the run goes on.
      args: The options.
      state: Where the run stands.
      train_dataset: The tokenised rows.
      optimizer: The optax transformation of the run, from `create_optimizer`.
      lr_scheduler: The schedule that records of the learning rate come from; None: unknown.
    """

    def __init__(  # noqa: PLR0913  TRL's face: scripts written for it pass these names.
        self,
        model: LanguageModel | str | Path,
        args: SFTConfig | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        compute_metrics: Callable[..., Any] | None = None,
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
          args: The options; None: the defaults.
          data_collator: transformers' collators for text, which pad as this trainer does; or a
            function of a list of rows, called on the host, whose rows are not packed.
          train_dataset: A `datasets.Dataset`, an `IterableDataset`, a list of mappings or the path
            of a file: of texts, messages, prompts and completions, or token ids.
          eval_dataset: Not built yet.
          processing_class: TRL's newer name of `tokenizer`.
          compute_metrics: Not built yet.
          callbacks: `TrainerCallback`s, ours or transformers', called as the run goes on.
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
          NotBuiltYetError: What is marked so above was asked for.
        """
        refuse_unbuilt(
            {
                "eval_dataset": eval_dataset,
                "compute_metrics": compute_metrics,
            }
        )
        self._collator = host_collator(data_collator)
        self.args = checked_args(args)
        self._given_optimizers = checked_optimizers(optimizers, self.args)
        self.optimizer, self.lr_scheduler = self._given_optimizers
        if train_dataset is None:
            raise ValueError(
                "`train_dataset` must be given; got None. "
                "Pass a datasets.Dataset or a list of mappings, [{'text': ...}, ...]."
            )
        self.callbacks = list(callbacks or ())
        self.state = TrainerState()
        self.control = TrainerControl()
        limit = max_seq_length if max_seq_length is not None else self.args.row_limit
        self.model = ready_model(model, peft_config, limit, self.args.seed)
        check_embedding_rate(self.args, self.optimizer, self.model)
        self.tokenizer = one_tokenizer(tokenizer, processing_class, self.model)
        self.max_length = row_limit(limit, self.model)
        asked = self.args.packing if packing is None else packing
        packs = packs_rows(asked, self._collator)
        self._packing = self.args.packing_strategy if packs else None
        options = row_options(
            self.args,
            dataset_text_field,
            formatting_func=formatting_func,
            # These two strategies split what is too long, and lose nothing.
            max_length=self.max_length if self._packing in (None, "bfd") else sys.maxsize,
            threads=dataset_num_proc,
            vocab_size=self.model.config.vocab_size,
        )
        self.train_dataset = read_train_rows(
            train_dataset, self.tokenizer, options, self.args.max_steps
        )

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
          ValueError: There is no such checkpoint, or it is damaged or not one of this run.
        """
        runtime.use_compile_cache()
        args, plan = self.args, self._plan()
        if args.saves != "no":
            self._output_dir().mkdir(parents=True, exist_ok=True)
            clear_leftovers(self._output_dir(), PREFIX)
        folder = find_checkpoint(resume_from_checkpoint, args.output_dir)
        size = (self.batch_size, args.gradient_accumulation_steps)
        # A stream has no length: as many passes as the steps take.
        examples = sys.maxsize if plan.examples is None else plan.examples
        per_epoch = windows_per_epoch(examples, *size)
        total = (
            args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        )
        self.control = TrainerControl()
        tx = self._prepare_optimizer(total)
        identity = functools.cache(self._identity)
        if folder is None:
            start = start_anew(self.model, tx, args.seed)
        else:
            start = resume(
                folder, self.model, tx, optim=args.optim, total=total, identity=identity()
            )
        self.state = dataclasses.replace(
            start.state,
            max_steps=total,
            num_train_epochs=sys.maxsize if plan.examples is None else math.ceil(total / per_epoch),
            logging_steps=args.logging_steps,
            save_steps=args.save_interval(total),
            train_batch_size=args.per_device_train_batch_size,
        )
        log = Log(self.state, self.lr_scheduler, args, self._tell_log, start.losses)
        self._report_start(log, plan, folder)
        saver = Saver(self.model, self.tokenizer, args, start, identity=identity)
        started = time.perf_counter()
        with contextlib.closing(log), saver, exit_on_sigterm():
            try:
                self._run(tx, start, log, saver, plan)
                log.read()
                for line in skipped_later(self.train_dataset):
                    log.write(f"jaxtune: skipped {line}")
            except (KeyboardInterrupt, SystemExit):
                self._save_at_exit(log, saver)
                raise
        self._tell("on_train_end")
        return log.output(time.perf_counter() - started, math.prod(size))

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write what was trained and the tokenizer, loadable by peft and transformers.

        Args:
          output_dir: Where; None: `args.output_dir`.

        Raises:
          ValueError: Neither is given.
        """
        folder = Path(output_dir) if output_dir is not None else self._output_dir()
        self.model.save_pretrained(folder)
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
                tqdm.write(line)
        return create_optimizer(
            args.optim,
            self.lr_scheduler,
            embedding_learning_rate=embedding_schedule(args, self.lr_scheduler),
            b1=args.adam_beta1,
            b2=args.adam_beta2,
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )

    def _prepare_optimizer(self, total_steps: int) -> optax.GradientTransformation:
        """The schedule, then the optimizer, anew for each run."""
        self.optimizer, self.lr_scheduler = self._given_optimizers
        if self.optimizer is None and self.lr_scheduler is None:
            self.lr_scheduler = self.create_scheduler(total_steps)
        made = self.create_optimizer()
        self.optimizer = checked_transformation(self.optimizer if made is None else made)
        return self.optimizer

    def _run(
        self,
        tx: optax.GradientTransformation,
        start: Start,
        log: Log,
        saver: Saver,
        plan: Plan | StreamPlan,
    ) -> None:
        """The loop: dispatch a step, bind its arrays, then read the metrics of the one before."""
        args = self.args
        graphdef, trainable, frozen = split(self.model)
        step = make_train_step(
            graphdef,
            tx,
            accumulation=args.gradient_accumulation_steps,
            max_grad_norm=args.max_grad_norm,
            label_smoothing=args.label_smoothing_factor,
        )
        key, place = start.dropout_key, start.place
        # A CPU's own memory is the host's: there is nothing to move, and nothing to go wrong.
        untried = self.model.model.remat == "offload" and jax.default_backend() != "cpu"
        flops_a_token = 6 * count_parameters(self.model)[1]
        self._tell("on_train_begin")
        if self._done():
            return
        for epoch in range(start.place.epoch, self.state.num_train_epochs):
            # The plan was made for these rows: of a stream, if they are one.
            windows = plan.windows(self.train_dataset, place)  # pyrefly: ignore[bad-argument-type]
            for number, window in enumerate(windows, start=place.window + 1):
                batch = split_rows(window.batch, self.model.carried.mesh)
                if key is not None:
                    step_key = jax.random.fold_in(key, self.state.global_step)
                    batch = dataclasses.replace(batch, dropout_key=step_key)
                if untried:
                    check_offload(self.model, batch, self.batch_size)
                    untried = False
                with deferred_interrupt():
                    trainable, saver.opt_state, metrics = step(
                        trainable, saver.opt_state, frozen, batch
                    )
                    nnx.update(self.model, trainable)
                    saver.place = window.after
                    self._count(epoch, number, window.tokens, plan.examples)
                    self.state.total_flos += flops_a_token * window.tokens
                    log.take(metrics, window.tokens)
                saver.check()
                log.read(behind=1)
                self._after("on_step_end", log, saver)
                if self._done():
                    break
            place = Place(epoch=epoch + 1)
            self._after("on_epoch_end", log, saver)
            if self._done():
                return

    def _count(self, epoch: int, number: int, tokens: int, rows: int | None) -> None:
        """Note a step of so many tokens, window `number` of an epoch of so many rows.

        Of a stream's, as in transformers, each step is its share of the run's.
        """
        args, state = self.args, self.state
        if rows is None:
            rows = state.max_steps * args.gradient_accumulation_steps * self.batch_size
        micro_batches = math.ceil(rows / self.batch_size)
        done = number * args.gradient_accumulation_steps
        state.global_step += 1
        state.epoch = epoch + min(done / micro_batches, 1.0)
        state.num_input_tokens_seen += tokens

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
            collator=self._collator,
        )
        return plan_of(self.train_dataset, request)

    def _done(self) -> bool:
        return self.control.should_training_stop or self.state.global_step >= self.state.max_steps

    def _after(self, event: str, log: Log, saver: Saver) -> None:
        """Call the callbacks after a step or an epoch, and do what is due or they ask for."""
        self._tell(event)
        if self.control.should_log:
            self.control.should_log = False
            log.force()
        if self.control.should_save or save_is_due(event, self.state, self.args.saves):
            log.read()  # the state that is saved holds the record of its own step
            self.control.should_save = False
            saver.save(self._output_dir(), self.state, log.losses())
            if any(map(listens_to_saves, self.callbacks)):
                saver.wait()
            self._tell("on_save")

    def _save_at_exit(self, log: Log, saver: Saver) -> None:
        """Save the last whole step of a run that is being stopped, unless it is saved already."""
        if self.args.saves == "no" or saver.saved == self.state.global_step:
            return
        with deferred_interrupt():
            log.read()
            saver.save(self._output_dir(), self.state, log.losses())
            saver.wait()
        log.write(f"jaxtune: stopped and saved at step {self.state.global_step:,}")

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
        )

    def _output_dir(self) -> Path:
        if self.args.output_dir is None:
            raise ValueError(
                "saving needs a folder; `output_dir` is None. Pass SFTConfig(output_dir=...)."
            )
        return Path(self.args.output_dir)

    def _report_start(self, log: Log, plan: Plan | StreamPlan, resumed: Path | None) -> None:
        """Say what is about to be trained, and what was done to the rows."""
        trainable, total = count_parameters(self.model)
        rows, args = known_rows(self.train_dataset), self.args
        count = "a stream of" if plan.examples is None else f"{plan.examples:,}"
        log.write(
            f"jaxtune: {count} rows, {self.state.max_steps:,} steps of "
            f"{self.batch_size} x {args.gradient_accumulation_steps} rows, "
            f"{trainable:,} of {total:,} parameters trained ({100 * trainable / total:.2f} %)"
        )
        if resumed is not None:
            log.write(f"jaxtune: {resumed} is resumed at step {self.state.global_step:,}")
        for asked, name in ((args.fp16, "float16"), (args.bf16, "bfloat16")):
            if asked and self.model.dtype != name:
                log.write(
                    f"jaxtune: {name} was asked for; the model has {self.model.dtype}, and is "
                    "trained in it (from_pretrained(dtype=...) decides)"
                )
        layout = describe(plan.head if isinstance(plan, StreamPlan) else plan)
        if layout is not None:
            log.write(f"jaxtune: {layout}")
        for line in report_lines(rows, self.tokenizer, self.max_length, colour=log.colour):
            log.write(line)

    def _tell(self, event: str, **more: Any) -> None:
        for callback in self.callbacks:
            answer = getattr(callback, event)(
                self.args,
                self.state,
                self.control,
                model=self.model,
                processing_class=self.tokenizer,
                **more,
            )
            self.control = self.control if answer is None else answer

    def _tell_log(self, record: dict[str, float]) -> None:
        self._tell("on_log", logs=record)


class UnslothTrainer(SFTTrainer):
    """`SFTTrainer` under Unsloth's name: the options alone say what a run does."""
