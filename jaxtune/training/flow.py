"""What is due after a step or an epoch, before any callback is asked."""

from jaxtune.training.config import SFTConfig
from jaxtune.training.state import TrainerControl, TrainerState


def ask_for_what_is_due(
    event: str, args: SFTConfig, state: TrainerState, control: TrainerControl
) -> None:
    """Set the flags of the control as transformers does; callbacks may change them after that.

    One thing more is due: a log record of the last step, whatever its number.

    Args:
      event: "on_step_end" or "on_epoch_end".
      args: The strategies, `logging_first_step` and `eval_delay`.
      state: Where the run stands, and its intervals.
      control: Changed.

    Source: transformers `trainer_callback.py`, `DefaultFlowCallback`.
    """
    done = state.epoch if event == "on_epoch_end" else state.global_step
    may_evaluate = args.eval_delay <= done
    if event == "on_epoch_end":
        control.should_log |= args.logging_strategy == "epoch"
        control.should_evaluate |= args.eval_strategy == "epoch" and may_evaluate
        control.should_save |= args.saves == "epoch"
        return
    step, last = state.global_step, state.global_step >= state.max_steps
    control.should_training_stop |= last
    control.should_log |= (args.logging_first_step and step == 1) or (
        args.logging_strategy == "steps" and (last or step % state.logging_steps == 0)
    )
    control.should_evaluate |= (
        args.eval_strategy == "steps" and may_evaluate and (last or step % state.eval_steps == 0)
    )
    control.should_save |= args.saves == "steps" and (last or step % state.save_steps == 0)
