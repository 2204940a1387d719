"""The options of a training run, under TRL's names; imports no jax."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.config import BAD_ROWS, LONG_ROWS, PACKING_STRATEGIES
from jaxtune.errors import NotBuiltYetError
from jaxtune.training.control_options import ControlOptions, check_control
from jaxtune.training.script_arguments import ScriptArguments

DEFAULT_WARMUP = 0.1  # of all steps
SAVE_STRATEGIES = ("no", "steps", "epoch", "best")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(ControlOptions, ScriptArguments):
    """Options of `SFTTrainer`; every field is read.

    Defaults are TRL's names with Unsloth's values. When things happen is in `ControlOptions`, what
    else scripts pass in `ScriptArguments`.

    Attributes:
      output_dir: Where checkpoints and `SFTTrainer.save_model` write; None: nowhere.
      dataset_text_field: Text column of the data set.
      dataset_num_proc: Threads that tokenise; None: the data layer's choice.
      completion_only_loss: Learn completions and not prompts; None: where rows have the columns
        `prompt` and `completion`.
      assistant_only_loss: Learn only what the assistant wrote, in rows of messages.
      bad_rows: What becomes of rows that cannot be learned (no text, a wrong role, ids outside the
        vocabulary): "refuse", an error that names them, or "skip".
      long_rows: What becomes of rows longer than the limit: "cut" at their end, "refuse" or "skip".
      max_length: Longest row in tokens; None: the model's `max_seq_length`.
      max_seq_length: The older name of `max_length`.
      packing: Several documents a row of `max_length` tokens; none sees another. Rows, and with
        them batches and steps, are then the packed ones.
      packing_strategy: How rows are filled: "bfd" (what is too long is cut), "bfd_split" or
        "wrapped" (it is split).
      padding_free: The rows of a micro-batch, or of a step if it is re-split, follow each other
        in one row. Packed rows are so anyway.
      resplit: Run the rows of a step in other micro-batches, of no more tokens, where that saves
        padding or passes over the weights; loss and gradient are the same (with dropout, other
        draws). Packed rows stay as they are.
      per_device_train_batch_size: Rows a micro-batch.
      gradient_accumulation_steps: Micro-batches a step.
      num_train_epochs: Passes over the data, unless `max_steps` is given.
      max_steps: Optimizer steps; -1: from the epochs.
      learning_rate: Its peak, 1/step.
      lr_scheduler_type: "linear", "cosine", "constant", "constant_with_warmup", "polynomial",
        "inverse_sqrt" and others; see `jaxtune.optim.schedules`.
      lr_scheduler_kwargs: Options of that schedule, such as {"min_lr_rate": 0.1}; None: none.
      warmup_steps: Steps of warm-up; below 1 it is a share of all steps. The default is no warm-up
        for "constant", which has none.
      warmup_ratio: The older name of such a share; None: `warmup_steps` alone.
      optim: "adamw_8bit" (8-bit states), "adamw_torch" (32-bit), "lion_8bit", "adafactor", "sgd"
        and others; see `jaxtune.optim.registry`.
      weight_decay: Decoupled weight decay, 1/step (coupled for "sgd").
      adam_beta1: Decay of the first moment.
      adam_beta2: Decay of the second moment.
      adam_epsilon: Added to the root of the second moment.
      max_grad_norm: Gradients are scaled down to this global norm; 0 turns it off.
      label_smoothing_factor: Share of a token's loss that is the mean over the vocabulary.
      neftune_noise_alpha: Strength a of the noise U(-a, a) / sqrt(T D) on the embedding's output in
        training; T is the length of the document, of a padded row its own. None: none.
      logging_steps: Steps between two log records; below 1 it is a share of all steps.
      save_strategy: When `output_dir/checkpoint-{step}` is written: "no", "steps" (every
        `save_steps`, and after the last step), "epoch", or "best" (after an evaluation better
        than all before); None: "steps" where `output_dir` is given, else "no".
      save_steps: Steps between two checkpoints; below 1 it is a share of all steps.
      save_total_limit: Checkpoints that are kept, the newest and the best; None: all.
      save_only_model: Leave out of them what only resuming needs.
      fp16: A request for float16; the model's own dtype wins, and a line says so.
      bf16: Likewise for bfloat16.
      report_to: Where log records go too: "tensorboard", "wandb", a list of them, "all" that is
        installed, or "none".
      run_name: Of the run in those reports; None: theirs.
      logging_dir: Folder of TensorBoard's file; None: one below `output_dir/runs`.
      seed: Of the data order, of dropout and noise, and of an adapter that the trainer makes.
      disable_tqdm: No progress bar.
      mesh: Devices to train on, as `from_pretrained` takes them: "auto", sizes such as
        {"data": 2, "fsdp": 4}, or a `jax.sharding.Mesh`. A model that was loaded onto one device
        is spread over them; one that was loaded onto a mesh stays there. None: where it is.
    """

    output_dir: str | os.PathLike[str] | None = None
    dataset_text_field: str = "text"
    dataset_num_proc: int | None = None
    completion_only_loss: bool | None = None
    assistant_only_loss: bool = False
    bad_rows: str = "refuse"
    long_rows: str = "cut"
    max_length: int | None = None
    max_seq_length: int | None = None
    packing: bool = False
    packing_strategy: str = "bfd"
    padding_free: bool = False
    resplit: bool = True
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    num_train_epochs: int | float = 3.0
    max_steps: int = -1
    learning_rate: int | float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: Mapping[str, Any] | None = None
    warmup_steps: int | float = DEFAULT_WARMUP
    warmup_ratio: int | float | None = None
    optim: str = "adamw_8bit"
    weight_decay: int | float = 0.001
    adam_beta1: int | float = 0.9
    adam_beta2: int | float = 0.999
    adam_epsilon: int | float = 1e-8
    max_grad_norm: int | float = 1.0
    label_smoothing_factor: int | float = 0.0
    neftune_noise_alpha: int | float | None = None
    logging_steps: int | float = 1
    save_strategy: str | None = None
    save_steps: int | float = 500
    save_total_limit: int | None = None
    save_only_model: bool = False
    fp16: bool = False
    bf16: bool | None = None
    report_to: str | Sequence[str] | None = "none"
    run_name: str | None = None
    logging_dir: str | os.PathLike[str] | None = None
    seed: int = 3407
    disable_tqdm: bool = False
    mesh: str | Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        """Check ranges, and that no two fields contradict each other."""
        super().__post_init__()
        for name in (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "num_train_epochs",
            "logging_steps",
            "save_steps",
        ):
            _check(name, getattr(self, name), getattr(self, name) > 0, "> 0")
        for name in ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "seed"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, ">= 0")
        alpha = self.neftune_noise_alpha
        _check("neftune_noise_alpha", alpha, alpha is None or alpha >= 0, ">= 0 or None")
        _check("max_steps", self.max_steps, self.max_steps == -1 or self.max_steps > 0, "> 0 or -1")
        for name in ("max_length", "max_seq_length", "dataset_num_proc", "save_total_limit"):
            value = getattr(self, name)
            _check(name, value, value is None or value > 0, "> 0 or None")
        if None not in (self.max_length, self.max_seq_length) and (
            self.max_length != self.max_seq_length
        ):
            raise ValueError(
                "`max_length` and `max_seq_length` are two names of one limit and must agree; got "
                f"{self.max_length} and {self.max_seq_length}. Pass one of them."
            )
        _check("adam_epsilon", self.adam_epsilon, self.adam_epsilon > 0, "> 0")
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio", "label_smoothing_factor"):
            value = getattr(self, name)
            _check(name, value, value is None or 0 <= value < 1, "in [0, 1)")
        if self.packing_strategy not in PACKING_STRATEGIES:
            raise ValueError(
                f"`packing_strategy` must be one of {PACKING_STRATEGIES}; got "
                f"{self.packing_strategy!r}."
            )
        for name, known in (("bad_rows", BAD_ROWS), ("long_rows", LONG_ROWS)):
            value = getattr(self, name)
            _check(name, repr(value), value in known, f"one of {known}")
        if self.fp16 and self.bf16:
            raise ValueError(
                "`fp16` and `bf16` ask for two dtypes; got both. Pass one of them, or neither."
            )
        self._check_saving()
        check_control(self)

    def _check_saving(self) -> None:
        """Check that what is to be saved has a time and a place."""
        step = self.save_steps
        _check("save_steps", step, step < 1 or step % 1 == 0, "whole, or a share below 1")
        if self.save_strategy not in (*SAVE_STRATEGIES, None):
            raise ValueError(
                f"`save_strategy` must be one of {SAVE_STRATEGIES} or None; got "
                f"{self.save_strategy!r}."
            )
        if self.saves != "no" and self.output_dir is None:
            raise ValueError(
                f"`save_strategy`={self.save_strategy!r} needs `output_dir`; got None. "
                "Pass output_dir=, or save_strategy='no'."
            )

    @property
    def saves(self) -> str:
        """When checkpoints are written: `save_strategy`, or what `output_dir` implies."""
        if self.save_strategy is not None:
            return self.save_strategy
        return "no" if self.output_dir is None else "steps"

    def interval(self, name: str, total_steps: int) -> int:
        """Steps between two of "logging", "eval" or "save"; a share is rounded up, as theirs."""
        steps = getattr(self, f"{name}_steps")
        return _share(steps, total_steps) if steps < 1 else int(steps)

    @property
    def row_limit(self) -> int | None:
        """Longest row in tokens, whichever name was used; None: the model's."""
        return self.max_length if self.max_length is not None else self.max_seq_length

    def warmup(self, total_steps: int) -> int:
        """Warm-up in steps; a share is rounded up, as transformers does."""
        if self.warmup_ratio is not None:
            return _share(self.warmup_ratio, total_steps)
        if self.lr_scheduler_type == "constant" and self.warmup_steps == DEFAULT_WARMUP:
            return 0
        if self.warmup_steps < 1:
            return _share(self.warmup_steps, total_steps)
        return int(self.warmup_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnslothTrainingArguments(SFTConfig):
    """`SFTConfig` with a rate for the trained embedding and head; every trainer takes both.

    Attributes:
      embedding_learning_rate: Peak of the trained embedding and head, 1/step, on the schedule of
        `learning_rate`; None: `learning_rate`. Weight decay stays the user's.
      q_galore_config: None.
    """

    embedding_learning_rate: int | float | None = None
    q_galore_config: Any = None

    def __post_init__(self) -> None:
        """Check this rate too."""
        super().__post_init__()
        rate = self.embedding_learning_rate
        _check("embedding_learning_rate", rate, rate is None or rate >= 0, ">= 0 or None")
        if rate is not None and not self.learning_rate:
            raise ValueError(
                "`embedding_learning_rate` follows the schedule of `learning_rate`, which must be "
                f"> 0; got {rate} and {self.learning_rate}. Pass a learning_rate > 0."
            )
        if self.q_galore_config is not None:
            raise NotBuiltYetError(
                f"`q_galore_config` is not built yet; got {self.q_galore_config!r}. Leave it out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingArguments(SFTConfig):
    """`SFTConfig` with transformers' defaults; every trainer takes both."""

    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    warmup_steps: int | float = 0
    optim: str = "adamw_torch_fused"
    weight_decay: int | float = 0.0
    logging_steps: int | float = 500
    seed: int = 42


def _share(ratio: int | float, total_steps: int) -> int:
    # -(-x // 1) is ceil(x) without importing math.
    return int(-(-total_steps * ratio // 1))


def _check(name: str, got: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {wanted}; got {got}.")
