"""`EarlyStoppingCallback`: a run ends where its metric no longer gets better."""

import math
from typing import Any

from jaxtune.training.callbacks import TrainerCallback
from jaxtune.training.state import TrainerControl, TrainerState


class EarlyStoppingCallback(TrainerCallback):
    """Ends the run after evaluations whose `metric_for_best_model` is not the best.

    An evaluation is better if its metric is better than the best so far by more than the
    threshold. The count of those that are not is kept in checkpoints.

    Attributes:
      early_stopping_patience: Evaluations in a row that may be no better; the last of them ends
        the run.
      early_stopping_threshold: What counts as better, in the metric's units.
      early_stopping_patience_counter: Evaluations in a row that were no better.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0
    ) -> None:
        """Check the two.

        Args:
          early_stopping_patience: At least 1.
          early_stopping_threshold: At least 0; None: 0.

        Raises:
          ValueError: One is out of its range.
        """
        if early_stopping_patience < 1:
            raise ValueError(
                f"`early_stopping_patience` must be at least 1; got {early_stopping_patience}."
            )
        threshold = early_stopping_threshold or 0.0
        if not 0 <= threshold < math.inf:
            raise ValueError(f"`early_stopping_threshold` must be >= 0; got {threshold}.")
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = threshold
        self.early_stopping_patience_counter = 0

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        """Refuse a run in which nothing would ever be compared."""
        if args.metric_for_best_model is None or args.eval_strategy == "no":
            raise ValueError(
                "EarlyStoppingCallback needs evaluations and a metric; got "
                f"eval_strategy={args.eval_strategy!r} and "
                f"metric_for_best_model={args.metric_for_best_model!r}. Pass eval_strategy='steps' "
                "and metric_for_best_model='loss', or load_best_model_at_end=True."
            )

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count; the state's best metric is still that of the evaluations before."""
        name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        found = kwargs["metrics"].get(name)
        if found is None:  # another one of several data sets
            return
        best = state.best_metric
        gain = math.inf if best is None else (found - best) * (1 if args.greater_is_better else -1)
        if gain > self.early_stopping_threshold:
            self.early_stopping_patience_counter = 0
        else:
            self.early_stopping_patience_counter += 1
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in transformers' form."""
        return {
            "args": {
                "early_stopping_patience": self.early_stopping_patience,
                "early_stopping_threshold": self.early_stopping_threshold,
            },
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }
