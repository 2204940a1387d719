"""When a run logs, evaluates, keeps its best model, and in which order it takes its rows."""

import dataclasses
from typing import Any

from jaxtune.errors import NotBuiltYetError

INTERVALS = ("no", "steps", "epoch")
SAMPLING = ("random", "sequential", "group_by_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ControlOptions:
    """Base of the options: what decides when things happen in a run.

    Attributes:
      logging_strategy: When a log record is made: "steps" (every `logging_steps`, and after the
        last step), "epoch" or "no".
      logging_first_step: One of the first step too.
      eval_strategy: When the `eval_dataset` is evaluated: "no", "steps" (every `eval_steps`, and
        after the last step) or "epoch".
      eval_steps: Steps between two evaluations; below 1 it is a share of all steps; None:
        `logging_steps`.
      eval_delay: Steps, or epochs, before the first evaluation.
      eval_on_start: Evaluate before the first step too; a resumed run has done so already.
      per_device_eval_batch_size: Rows of a batch of an evaluation.
      eval_packing: None or False; rows are padded for an evaluation, whose loss is the same.
      prediction_loss_only: Losses alone: no predictions, and no `compute_metrics`.
      load_best_model_at_end: Give the model the weights of the best checkpoint after the run.
      metric_for_best_model: What "best" means: a metric of an evaluation, with or without "eval_".
        None: "loss" where something asks for the best, else nothing is tracked.
      greater_is_better: Of that metric; None: unless its name ends in "loss".
      train_sampling_strategy: Order of the rows: "random" is the Hugging Face trainer's,
        "sequential" theirs in the data set, "group_by_length" puts rows of like lengths into a
        step, by transformers' algorithm, seeded for each epoch as "random" is.
      group_by_length: The older name of the last of them.
      dataloader_drop_last: Leave out the rows of an epoch that do not fill a micro-batch; an
        evaluation takes all rows.
      full_determinism: Compile the programs with deterministic operations alone; slower on a GPU.
    """

    logging_strategy: str = "steps"
    logging_first_step: bool = False
    eval_strategy: str = "no"
    eval_steps: int | float | None = None
    eval_delay: int | float = 0
    eval_on_start: bool = False
    per_device_eval_batch_size: int = 4
    eval_packing: bool | None = None
    prediction_loss_only: bool = False
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    train_sampling_strategy: str = "random"
    group_by_length: bool = False
    dataloader_drop_last: bool = False
    full_determinism: bool = False

    @property
    def sampling(self) -> str:
        """The order of the rows, whichever name was used."""
        return "group_by_length" if self.group_by_length else self.train_sampling_strategy


def with_derived(args: Any) -> Any:
    """The options with what transformers fills in, since its callbacks read it there.

    Args:
      args: An `SFTConfig`.

    Returns:
      It, or a copy where `metric_for_best_model`, `greater_is_better` or `eval_steps` follows
      from others.
    """
    found: dict[str, Any] = {}
    metric = args.metric_for_best_model
    if metric is None and args.load_best_model_at_end:
        metric = found["metric_for_best_model"] = "loss"
    if metric is not None and args.greater_is_better is None:
        found["greater_is_better"] = not metric.endswith("loss")
    if args.eval_strategy == "steps" and args.eval_steps is None:
        found["eval_steps"] = args.logging_steps
    return dataclasses.replace(args, **found) if found else args


def check_control(args: Any) -> None:
    """Refuse ranges, and options that contradict each other.

    Args:
      args: An `SFTConfig`.

    Raises:
      ValueError: A value is out of its range, or asks for what another rules out.
      NotBuiltYetError: Packed evaluation.
    """
    for name, allowed in (
        ("logging_strategy", INTERVALS),
        ("eval_strategy", INTERVALS),
        ("train_sampling_strategy", SAMPLING),
    ):
        if getattr(args, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}; got {getattr(args, name)!r}.")
    for name in ("logging_steps", "eval_steps"):
        steps = getattr(args, name)
        whole = steps is None or 0 < steps < 1 or (steps >= 1 and steps % 1 == 0)
        _check(name, steps, whole, "whole and > 0, or a share below 1")
    _check("eval_delay", args.eval_delay, args.eval_delay >= 0, ">= 0")
    rows = args.per_device_eval_batch_size
    _check("per_device_eval_batch_size", rows, rows > 0, "> 0")
    if args.eval_packing:
        raise NotBuiltYetError(
            "`eval_packing` is not built; got True. Leave it out: the loss is a mean over tokens, "
            "the same for padded and packed rows."
        )
    if args.group_by_length and args.train_sampling_strategy == "sequential":
        raise ValueError(
            "`group_by_length` and `train_sampling_strategy` are two names of one choice; got True "
            "and 'sequential'. Pass one of them."
        )
    _check_best(args)


def _check_best(args: Any) -> None:
    """Check that what asks for the best model can have one."""
    asks = "load_best_model_at_end" if args.load_best_model_at_end else "save_strategy='best'"
    if not args.load_best_model_at_end and args.saves != "best":
        return
    if args.eval_strategy == "no":
        raise ValueError(
            f"`{asks}` needs evaluations to compare; `eval_strategy` is 'no'. Pass "
            "eval_strategy='steps' or 'epoch', and an eval_dataset."
        )
    if args.saves == "best":
        if args.metric_for_best_model is None and not args.load_best_model_at_end:
            raise ValueError(
                "`save_strategy`='best' needs `metric_for_best_model`; got None. Pass 'loss', or "
                "a metric of compute_metrics."
            )
        return
    if args.saves != args.eval_strategy:
        raise ValueError(
            "`load_best_model_at_end` needs a checkpoint of what was evaluated: `save_strategy` "
            f"and `eval_strategy` must be the same, or the former 'best'; got {args.saves!r} and "
            f"{args.eval_strategy!r}."
        )
    each = args.logging_steps if args.eval_steps is None else args.eval_steps
    if args.eval_strategy == "steps" and not _multiple(args.save_steps, each):
        raise ValueError(
            "`load_best_model_at_end` needs a checkpoint of what was evaluated: `save_steps` must "
            f"be a multiple of `eval_steps`; got {args.save_steps} and {each}."
        )


def _multiple(save: int | float, each: int | float) -> bool:
    """Whether one interval is a multiple of the other, both steps or both shares."""
    if (save < 1) != (each < 1):
        return False
    ratio = save / each
    return abs(ratio - round(ratio)) < 1e-6 and ratio >= 1 - 1e-6


def _check(name: str, got: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` must be {wanted}; got {got}.")
