"""The numbers of a run that stand in the card of what it trained."""

from jaxtune.training.config import SFTConfig
from jaxtune.training.state import TrainerState


def run_numbers(args: SFTConfig, state: TrainerState) -> dict[str, str]:
    """Say how far a run came, and with which options.

    Args:
      args: Of the run.
      state: Where it stands.

    Returns:
      {what: value}, as a reader of the card shall see them.
    """
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    batch = f"{args.per_device_train_batch_size} x {args.gradient_accumulation_steps}"
    numbers = {
        "steps": f"{state.global_step:,} of {state.max_steps:,}",
        "epochs": f"{state.epoch:.2f}",
        "tokens": f"{state.num_input_tokens_seen:,}",
        "batch x accumulation": batch,
        "learning rate": f"{args.learning_rate:g} ({args.lr_scheduler_type})",
        "optimizer": args.optim,
        "seed": f"{args.seed}",
    }
    if losses:
        numbers["last loss"] = f"{losses[-1]:.4f}"
    return numbers
