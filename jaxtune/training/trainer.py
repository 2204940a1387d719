"""`SFTTrainer`: supervised fine-tuning under TRL's names; it sequences pure functions."""

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from jaxtune import runtime
from jaxtune.adapters.counting import count_parameters
from jaxtune.adapters.peft_form import save_adapter
from jaxtune.data.collate import Window, bucket_lengths, windows, windows_per_epoch
from jaxtune.data.tokenize import TokenizedRows, tokenize_text
from jaxtune.errors import NotBuiltYetError
from jaxtune.models.decoder import CausalLM
from jaxtune.optim.registry import create_optimizer
from jaxtune.optim.schedules import create_schedule
from jaxtune.training.config import SFTConfig
from jaxtune.training.interrupt import deferred_interrupt
from jaxtune.training.log import Log
from jaxtune.training.state import TrainerCallback, TrainerControl, TrainerState, TrainOutput
from jaxtune.training.step import make_train_step, split


class SFTTrainer:
    """Fine-tunes a model's adapters on a text column.

    Loss: sum of token losses over the tokens of the whole accumulation window. Rows in the order
    of the Hugging Face trainer. After each step the new arrays are bound to the model, so that it
    can generate and be saved at any moment.

    Attributes:
      model: The model; its adapters change as the run goes on.
      args: The options.
      state: Where the run stands.
      train_dataset: The tokenised rows.
    """

    def __init__(  # noqa: PLR0913  TRL's face: scripts written for it pass these names.
        self,
        model: CausalLM,
        *,
        train_dataset: Sequence[Mapping[str, Any]],
        args: SFTConfig | None = None,
        tokenizer: Any = None,
        processing_class: Any = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        dataset_text_field: str | None = None,
        max_seq_length: int | None = None,
        packing: bool | None = None,
    ) -> None:
        """Tokenise the data set and check that the run can work; nothing is compiled yet.

        Args:
          model: From `FastLanguageModel.get_peft_model`.
          train_dataset: A `datasets.Dataset` or a list of mappings.
          args: The options; None: the defaults.
          tokenizer: None: the one that was loaded with the model.
          processing_class: TRL's newer name of `tokenizer`.
          callbacks: Called as the run goes on.
          dataset_text_field: Overrides the option of this name.
          max_seq_length: Overrides `args.max_length`; tokens.
          packing: False or None; packing is not built yet.

        Raises:
          ValueError: Nothing to train, no tokenizer, or rows without the text column.
          NotBuiltYetError: `packing=True`.
        """
        if packing:
            raise NotBuiltYetError("packing=True is not built yet; pass packing=False.")
        self.model = model
        self.args = args or SFTConfig()
        self.tokenizer = _one_tokenizer(tokenizer, processing_class, model)
        self.callbacks = list(callbacks or ())
        self.state = TrainerState()
        self.control = TrainerControl()
        if not count_parameters(model)[0]:
            raise ValueError(
                "the model must have something to train; every parameter is frozen. "
                "Call FastLanguageModel.get_peft_model(model, r=16) first."
            )
        self.max_length = _row_limit(self.args, max_seq_length, model)
        self.train_dataset = tokenize_text(
            train_dataset,
            self.tokenizer,
            text_field=dataset_text_field or self.args.dataset_text_field,
            max_length=self.max_length,
        )
        _check_ids(self.train_dataset, model.config.vocab_size)

    def train(self) -> TrainOutput:
        """Run to the end, or to the first callback that asks to stop.

        Returns:
          Steps made, mean loss and rates. An interrupt leaves the model at the last whole step.
        """
        runtime.use_compile_cache()
        args, rows = self.args, self.train_dataset.rows
        size = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
        per_epoch = windows_per_epoch(len(rows), *size)
        total = (
            args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        )
        self.state = TrainerState(
            max_steps=total,
            num_train_epochs=math.ceil(total / per_epoch),
            logging_steps=args.logging_steps,
            train_batch_size=args.per_device_train_batch_size,
        )
        self.control = TrainerControl()
        schedule = create_schedule(
            args.lr_scheduler_type, args.learning_rate, args.warmup(total), total
        )
        tx = self.create_optimizer(schedule)
        log = Log(self.state, schedule, args, self._tell_log)
        self._report_start(log)
        started = time.perf_counter()
        try:
            self._run(tx, log)
            log.flush()
        finally:
            log.close()
        self._tell("on_train_end")
        return log.output(time.perf_counter() - started, math.prod(size))

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the adapter and the tokenizer as they are now, loadable by peft and transformers.

        Args:
          output_dir: Where; None: `args.output_dir`.
        """
        folder = Path(output_dir or self.args.output_dir)
        save_adapter(self.model, folder)
        self.tokenizer.save_pretrained(folder)

    def create_optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """The optimizer of the options; override to train with another."""
        args = self.args
        return create_optimizer(
            args.optim,
            schedule,
            b1=args.adam_beta1,
            b2=args.adam_beta2,
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )

    def _run(self, tx: optax.GradientTransformation, log: Log) -> None:
        """The loop: dispatch a step, bind its arrays, then read the metrics of the one before."""
        args = self.args
        graphdef, trainable, frozen = split(self.model)
        step = make_train_step(
            graphdef,
            tx,
            accumulation=args.gradient_accumulation_steps,
            max_grad_norm=args.max_grad_norm,
        )
        opt_state = tx.init(trainable)
        key = jax.random.key(args.seed) if self.model.has_dropout else None
        self._tell("on_train_begin")
        micro_batches = math.ceil(len(self.train_dataset.rows) / args.per_device_train_batch_size)
        flops_a_token = 6 * count_parameters(self.model)[1]
        for epoch in range(self.state.num_train_epochs):
            for number, window in enumerate(self._windows(epoch), start=1):
                batch = window.batch
                if key is not None:
                    step_key = jax.random.fold_in(key, self.state.global_step)
                    batch = dataclasses.replace(batch, dropout_key=step_key)
                with deferred_interrupt():
                    trainable, opt_state, metrics = step(trainable, opt_state, frozen, batch)
                    nnx.update(self.model, trainable)
                    self.state.global_step += 1
                done = number * args.gradient_accumulation_steps
                self.state.epoch = epoch + min(done / micro_batches, 1.0)
                self.state.num_input_tokens_seen += window.tokens
                self.state.total_flos += flops_a_token * window.tokens
                log.step(metrics, window.tokens)
                self._tell("on_step_end")
                if self._done():
                    return
            self._tell("on_epoch_end")

    def _windows(self, epoch: int) -> Iterator[Window]:
        rows = self.train_dataset.rows
        lengths = np.array([len(row) for row in rows])
        return windows(
            rows,
            batch_size=self.args.per_device_train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            buckets=bucket_lengths(lengths, self.max_length),
            seed=self.args.seed,
            epoch=epoch,
        )

    def _done(self) -> bool:
        return self.control.should_training_stop or self.state.global_step >= self.state.max_steps

    def _report_start(self, log: Log) -> None:
        """Say what is about to be trained, and what was done to the rows."""
        trainable, total = count_parameters(self.model)
        rows, args = self.train_dataset, self.args
        log.write(
            f"jaxtune: {len(rows.rows):,} rows, {self.state.max_steps:,} steps of "
            f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps} rows, "
            f"{trainable:,} of {total:,} parameters trained ({100 * trainable / total:.2f} %)"
        )
        if rows.eos_appended:
            log.write(f"jaxtune: end-of-text token appended to {rows.eos_appended:,} rows")
        if rows.truncated:
            log.write(
                f"jaxtune: {rows.truncated:,} rows cut at {self.max_length} tokens, "
                f"{rows.tokens_lost:,} tokens lost"
            )

    def _tell(self, event: str, **more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(
                self.args,
                self.state,
                self.control,
                model=self.model,
                processing_class=self.tokenizer,
                **more,
            )

    def _tell_log(self, record: dict[str, float]) -> None:
        self._tell("on_log", logs=record)


def _one_tokenizer(tokenizer: Any, processing_class: Any, model: CausalLM) -> Any:
    """The tokenizer under either name, or the model's own."""
    if tokenizer is not None and processing_class is not None and tokenizer is not processing_class:
        raise ValueError(
            "`tokenizer` and `processing_class` are two names of one argument; got two objects. "
            "Pass one of them."
        )
    found = tokenizer or processing_class or model.carried.tokenizer
    if found is None:
        raise ValueError(
            "a tokenizer is needed; none was passed and the model carries none. Pass tokenizer=."
        )
    return found


def _row_limit(args: SFTConfig, max_seq_length: int | None, model: CausalLM) -> int:
    """The longest row in tokens: the trainer's argument, the option, the model's own limit."""
    range_ = model.config.max_position_embeddings
    given = max_seq_length if max_seq_length is not None else args.row_limit
    limit = given if given is not None else model.carried.max_seq_length or range_
    if not 0 < limit <= range_:
        raise ValueError(
            f"`max_seq_length` must be between 1 and the model's range of {range_} tokens; got "
            f"{limit}. Shorten it."
        )
    return limit


def _check_ids(rows: TokenizedRows, vocab_size: int) -> None:
    largest = max((int(row.max()) for row in rows.rows if len(row)), default=-1)
    if largest >= vocab_size:
        raise ValueError(
            f"token ids must be below the model's vocabulary of {vocab_size}; the rows hold "
            f"{largest}. Use the tokenizer that belongs to the model."
        )
    if all(len(row) < 2 for row in rows.rows):
        warnings.warn(
            "every row has fewer than two tokens: there is nothing to learn", stacklevel=3
        )
