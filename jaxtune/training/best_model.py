"""The best model of a run: which evaluation it was, and its weights back in the model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxtune import processes
from jaxtune.language_model import LanguageModel
from jaxtune.training.checkpoint import PREFIX, checkpoints, folder_of
from jaxtune.training.config import SFTConfig
from jaxtune.training.resume import load_weights
from jaxtune.training.state import TrainerState
from jaxtune.training.whole_folder import remove_folder


def note_best(args: SFTConfig, state: TrainerState, metrics: dict[str, float]) -> bool:
    """Whether an evaluation is the best so far; the state then says so.

    Args:
      args: `metric_for_best_model` and `greater_is_better`.
      state: Its best metric, and the step of it where checkpoints are written.
      metrics: Of all data sets that were evaluated.

    Returns:
      False also where nothing is tracked, and for a metric that is NaN.

    Raises:
      ValueError: The metric is not among them.
    """
    if args.metric_for_best_model is None:
        return False
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    if name not in metrics:
        raise ValueError(
            "`metric_for_best_model` must name a metric of the evaluation; got "
            f"{args.metric_for_best_model!r}, and there are {sorted(metrics)}. Pass one of them."
        )
    found, best = metrics[name], state.best_metric
    better = np.greater if args.greater_is_better else np.less
    if np.isnan(found) or not (best is None or better(found, best)):
        return False
    state.best_metric = found
    if args.saves != "no":
        state.best_global_step = state.global_step
    return True


def name_best(output_dir: Path, state: TrainerState) -> None:
    """Note the best evaluation's checkpoint, if there is one or it is about to be written.

    Args:
      output_dir: Of the run; nothing is being written to it.
      state: Its `best_model_checkpoint` is set; where the best step was not saved it stays.
    """
    step = state.best_global_step
    if step is not None:
        folder = output_dir / f"{PREFIX}{step}"
        if step == state.global_step or folder.is_dir():
            state.best_model_checkpoint = str(folder)


def settle_best(model: LanguageModel, args: SFTConfig, state: TrainerState) -> Iterator[str]:
    """After a run: the best weights into the model, and the best checkpoint alone, where asked.

    Args:
      model: That of the run; the weights of the best checkpoint with `load_best_model_at_end`.
      args: With a `save_total_limit` of 1 every other checkpoint is removed, as in transformers.
      state: After the run. Without a best checkpoint nothing is loaded or removed.

    Yields:
      Lines for a person.
    """
    best = state.best_model_checkpoint
    if args.load_best_model_at_end and best is None:
        yield "jaxtune: no checkpoint is the best; the model is that of the last step"
    if best is None:
        return
    if args.load_best_model_at_end:
        load_weights(Path(best), model)
        yield f"jaxtune: the model is that of {best}, the best ({state.best_metric:.4g})"
    processes.wait_for_all("the best weights are read")
    if args.save_total_limit == 1 and args.saves != "no" and processes.is_first():
        for folder in checkpoints(folder_of(args)):
            if folder.resolve() != Path(best).resolve():
                remove_folder(folder)
