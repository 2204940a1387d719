"""`embedding_learning_rate`: read from the options, checked, and made into a schedule."""

from typing import Any

import optax
from flax import nnx

from jaxtune.models.decoder import CausalLM
from jaxtune.optim.groups import embedding_modules
from jaxtune.training.config import SFTConfig, UnslothTrainingArguments


def embedding_rate_of(args: SFTConfig) -> int | float | None:
    """The peak rate of the trained embedding and head, 1/step; None: that of all else."""
    return args.embedding_learning_rate if isinstance(args, UnslothTrainingArguments) else None


def check_embedding_rate(args: SFTConfig, tx: Any, model: CausalLM) -> None:
    """Refuse a rate that nothing would run at.

    Args:
      args: The options.
      tx: The optimizer that the user made; None: it is made of the options.
      model: What is trained in it is an `nnx.Param`.

    Raises:
      ValueError: The rate is given and the optimizer is the user's own, or the model trains neither
        its embedding nor its head.
    """
    rate = embedding_rate_of(args)
    if rate is None:
        return
    if tx is not None:
        raise ValueError(
            "`embedding_learning_rate` is a rate of the optimizer that `optim` names; got "
            f"{rate} beside an optimizer of your own. Group its rates by optax.partition and "
            "jaxtune.optim.embedding_labels, or leave one of the two out."
        )
    if not embedding_modules(nnx.state(model, nnx.Param)):
        raise ValueError(
            "`embedding_learning_rate` needs a trained embedding or head; got "
            f"{rate} for a model that trains neither. Pass modules_to_save=['embed_tokens', "
            "'lm_head'] to get_peft_model, or leave embedding_learning_rate out."
        )


def embedding_schedule(args: SFTConfig, schedule: optax.Schedule) -> optax.Schedule | None:
    """The run's schedule at the embedding's peak: lr(n) * embedding_learning_rate / learning_rate.

    Args:
      args: The options.
      schedule: Of all else, 1/step.

    Returns:
      An optax schedule; None without a rate of its own.
    """
    rate = embedding_rate_of(args)
    if rate is None:
        return None
    share = rate / args.learning_rate
    return lambda count: schedule(count) * share


def rate_lines(args: SFTConfig, model: CausalLM) -> list[str]:
    """What to tell the user: a line for each matrix with a rate of its own.

    Args:
      args: The options.
      model: What is trained in it is an `nnx.Param`.

    Returns:
      The lines, in Unsloth's words; none without a rate of its own.
    """
    rate = embedding_rate_of(args)
    if rate is None:
        return []
    tie = ", which is lm_head too" if model.config.tie_word_embeddings else ""
    return [
        f"jaxtune: Setting lr = {rate:.2e} instead of {args.learning_rate:.2e} for {module}{tie}."
        for module in embedding_modules(nnx.state(model, nnx.Param))
    ]
