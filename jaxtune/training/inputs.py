"""What a trainer is given: checked before any work, then made into a model and rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

from jaxtune.adapters.counting import count_parameters
from jaxtune.api import FastLanguageModel
from jaxtune.data.batch import IGNORE
from jaxtune.data.rows import TokenizedRows
from jaxtune.errors import NotBuiltYetError
from jaxtune.language_model import LanguageModel
from jaxtune.models.build import train_all
from jaxtune.optim.registry import create_optimizer
from jaxtune.optim.schedules import create_schedule
from jaxtune.training.config import SFTConfig
from jaxtune.training.foreign_arguments import is_foreign, read_arguments
from jaxtune.training.peft_config import lora_arguments

# What an evaluation gives without `compute_metrics`, worth comparing.
METRICS = ("loss", "entropy", "mean_token_accuracy")
Optimizers = tuple[optax.GradientTransformation | None, optax.Schedule | None]


def check_evaluation(
    args: SFTConfig, eval_dataset: Any, compute_metrics: Any, preprocess: Any, collator: Any
) -> None:
    """Refuse what no evaluation of the run could serve, before anything is loaded.

    Args:
      args: The options.
      eval_dataset: As the trainer got it.
      compute_metrics: Likewise.
      preprocess: Likewise, `preprocess_logits_for_metrics`.
      collator: The user's own; None: rows are laid out here.

    Raises:
      NotBuiltYetError: Rows of evaluations for a collator of one's own.
      ValueError: Evaluations without rows, or a best metric that none of them has.
      TypeError: A function that is none.
    """
    for name, value in (
        ("compute_metrics", compute_metrics),
        ("preprocess_logits_for_metrics", preprocess),
    ):
        if value is not None and not callable(value):
            raise TypeError(f"`{name}` must be a function or None; got {type(value).__name__}.")
    if eval_dataset is not None and collator is not None:
        raise NotBuiltYetError(
            "an evaluation with a `data_collator` of one's own is not built yet; got "
            f"{collator!r}. Leave eval_dataset out, or evaluate by a trainer without the collator."
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(
            f"`eval_strategy`={args.eval_strategy!r} needs an `eval_dataset`; got None. Pass one, "
            "or eval_strategy='no'."
        )
    if args.eval_on_start and eval_dataset is None:
        raise ValueError("`eval_on_start` needs an `eval_dataset`; got None. Pass one.")
    metric = args.metric_for_best_model
    if metric is None or compute_metrics is not None or eval_dataset is None:
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else [""]
    known = [f"eval_{name}{metric_}" for name in sets for metric_ in METRICS]
    if f"eval_{metric.removeprefix('eval_')}" not in known:
        raise ValueError(
            f"`metric_for_best_model` must be a metric of an evaluation; got {metric!r}, wanted "
            f"one of {known}. Pass one of them, or compute_metrics that gives it."
        )


def checked_args(args: Any) -> SFTConfig:
    """The options, with the names in them known to exist.

    Args:
      args: From the user: `SFTConfig` or one of its kinds, or options of trl or transformers;
        None: the defaults.

    Returns:
      The options.

    Raises:
      ValueError: Options of trl or transformers ask for what is not served.
      TypeError: Anything else.
    """
    if args is None:
        return SFTConfig()
    if isinstance(args, SFTConfig):
        return args
    if is_foreign(args):
        return read_arguments(args)
    kind = f"{type(args).__module__}.{type(args).__qualname__}"
    raise TypeError(
        f"`args` must be a jaxtune.SFTConfig or TrainingArguments, or one of trl's or "
        f"transformers'; got {kind}. Pass SFTConfig(...)."
    )


def checked_optimizers(optimizers: Any, args: SFTConfig) -> Optimizers:
    """The pair of the user's own optimizer and schedule, and what they leave to the options.

    Args:
      optimizers: (optax transformation or None, optax schedule or None).
      args: Name the optimizer and the schedule that are not given.

    Returns:
      The pair.

    Raises:
      TypeError: The pair holds something else.
      ValueError: A name in the options is unknown, or the schedule has no warm-up and gets one.
    """
    # An optax transformation is itself a tuple, of its two functions.
    if not isinstance(optimizers, (tuple, list)) or hasattr(optimizers, "update"):
        raise _no_pair(type(optimizers).__name__)
    if len(optimizers) != 2:
        raise _no_pair(f"{len(optimizers)} object(s)")
    tx, schedule = optimizers
    if tx is not None:
        checked_transformation(tx)
    if schedule is not None and not callable(schedule):
        raise TypeError(
            "the schedule of `optimizers` must be an optax schedule, a function of the step; got "
            f"{type(schedule).__name__}. Pass optax.constant_schedule(rate), or None."
        )
    if tx is None:
        rate = schedule
        if rate is None:
            rate = create_schedule(
                args.lr_scheduler_type,
                args.learning_rate,
                args.warmup(1),
                1,
                args.lr_scheduler_kwargs,
            )
        create_optimizer(args.optim, rate)
    return tx, schedule


def _no_pair(got: str) -> TypeError:
    return TypeError(
        f"`optimizers` must be a pair (optax transformation, schedule); got {got}. "
        "Pass (tx, None) to give the optimizer alone."
    )


def checked_transformation(tx: Any) -> optax.GradientTransformation:
    """What was given, or a TypeError if it is no optax transformation."""
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(
            "the optimizer must be an optax GradientTransformation; got "
            f"{type(tx).__module__}.{type(tx).__qualname__}. Pass for example optax.adamw(1e-4)."
        )
    return tx


def ready_model(
    model: Any, peft_config: Any, max_length: int | None, args: SFTConfig
) -> LanguageModel:
    """The model itself, or one loaded by its name, with the adapter that is asked for.

    As in TRL, a name without a new adapter is fully fine-tuned, unless it is an adapter's own.

    Args:
      model: A model, a hub id or a folder.
      peft_config: See `lora_arguments`; None: no new adapter.
      max_length: Longest row in tokens, for loading; None: the loader's default.
      args: The seed of the adapter's first values, and the mesh to load onto.

    Returns:
      A model with something to train.

    Raises:
      TypeError: It is none of these.
      ValueError: Every parameter is frozen.
    """
    if not isinstance(model, LanguageModel | str | Path):
        raise TypeError(
            "`model` must be one of FastLanguageModel.from_pretrained, or the name of one; got "
            f"{type(model).__module__}.{type(model).__qualname__}. Pass its hub id or folder."
        )
    lora = None if peft_config is None else lora_arguments(peft_config)
    named = isinstance(model, (str, Path))
    if isinstance(model, (str, Path)):
        limit: dict[str, Any] = {} if max_length is None else {"max_seq_length": max_length}
        model, _ = FastLanguageModel.from_pretrained(
            str(model), load_in_4bit=False, mesh=args.mesh, **limit
        )
    if lora is not None:
        model = FastLanguageModel.get_peft_model(model, random_state=args.seed, **lora)
    elif named and not count_parameters(model)[0]:
        # Known only now: the folder of an adapter is trained as it is, any other one as a whole.
        train_all(model)
        model.carried.full_finetuning = True
    if not count_parameters(model)[0]:
        raise ValueError(
            "the model must have something to train; every parameter is frozen. Pass "
            "peft_config=, or call FastLanguageModel.get_peft_model(model, r=16) first."
        )
    return model


def one_tokenizer(tokenizer: Any, processing_class: Any, model: LanguageModel) -> Any:
    """The tokenizer under either name, or the model's own."""
    if tokenizer is not None and processing_class is not None and tokenizer is not processing_class:
        raise ValueError(
            "`tokenizer` and `processing_class` are two names of one argument; got two objects. "
            "Pass one of them."
        )
    for found in (tokenizer, processing_class, model.carried.tokenizer):
        if found is not None:
            _check_tokenizer(found)
            return found
    raise ValueError(
        "a tokenizer is needed; none was passed and the model carries none. Pass tokenizer=."
    )


def _check_tokenizer(found: Any) -> None:
    """Refuse a processor: what it makes of images or sound could not be learned."""
    if hasattr(found, "tokenizer") and not hasattr(found, "convert_ids_to_tokens"):
        raise TypeError(
            "`processing_class` must be a tokenizer: rows of images or sound cannot be learned, "
            f"packed or not; got the processor {type(found).__name__}. For rows of text pass "
            "processing_class=processor.tokenizer."
        )


def row_limit(given: int | None, model: LanguageModel) -> int:
    """The longest row in tokens: what was asked for, or the model's own limit."""
    range_ = model.config.max_position_embeddings
    limit = given if given is not None else model.carried.max_seq_length or range_
    if not 0 < limit <= range_:
        raise ValueError(
            f"`max_seq_length` must be between 1 and the model's range of {range_} tokens; got "
            f"{limit}. Shorten it, or load the model with that max_seq_length, which stretches it."
        )
    return limit


def check_rows(rows: TokenizedRows) -> None:
    """Raise if a model could learn nothing from the rows."""
    labels = rows.labels if rows.labels is not None else rows.rows
    # The first token of a row is predicted by nothing.
    if not any((row[1:] != IGNORE).any() for row in labels):
        raise ValueError(
            "some token must be trained; every row has fewer than two tokens, or labels that are "
            "all -100 after its first. Pass longer rows, or a larger max_seq_length if they were "
            "cut."
        )
