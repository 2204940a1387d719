"""Where a run stands, and what it returns; the fields of transformers' classes of these names."""

import dataclasses
from typing import Any, NamedTuple


class TrainOutput(NamedTuple):
    """What `train` returns.

    Attributes:
      global_step: Optimizer steps made.
      training_loss: Mean of the steps' losses.
      metrics: train_runtime (s), train_samples_per_second, train_steps_per_second, total_flos,
        train_loss, epoch.
    """

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class EvalPrediction(NamedTuple):
    """What `compute_metrics` gets.

    Attributes:
      predictions: Logits, or what `preprocess_logits_for_metrics` made of them, [rows, longest,
        ...]; -100 behind the end of a row.
      label_ids: Labels aligned with the input, [rows, longest]; -100 is ignored, and padding.
    """

    predictions: Any
    label_ids: Any


class PredictionOutput(NamedTuple):
    """What `predict` returns.

    Attributes:
      predictions: As `compute_metrics` gets them; None with `prediction_loss_only`.
      label_ids: Likewise.
      metrics: test_loss, test_runtime (s) and the others of an evaluation.
    """

    predictions: Any
    label_ids: Any
    metrics: dict[str, Any]


@dataclasses.dataclass
class TrainerState:
    """Where the run stands; changed by the trainer, read by callbacks.

    The fields, and so the keys of `trainer_state.json`, are transformers'; those of evaluation and
    of searches keep transformers' defaults.

    Attributes:
      epoch: Passes over the data so far.
      global_step: Optimizer steps made.
      max_steps: Optimizer steps to make.
      num_train_epochs: Passes to make.
      logging_steps: Steps between log records.
      eval_steps: Steps between evaluations.
      save_steps: Steps between checkpoints.
      train_batch_size: Rows a micro-batch.
      num_input_tokens_seen: Tokens trained on, padding left out.
      total_flos: Floating-point operations, 6 x parameters x tokens.
      log_history: The log records, oldest first.
      best_metric: Of the best evaluation.
      best_global_step: Step of the best evaluation.
      best_model_checkpoint: Folder of the best evaluation.
      is_local_process_zero: This process prints.
      is_world_process_zero: This process writes.
      is_hyper_param_search: This run is one of a search.
      trial_name: Name in the search.
      trial_params: Options that the search chose.
      stateful_callbacks: What callbacks ask to be saved.
    """

    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: int = 0
    logging_steps: int = 1
    eval_steps: int = 500
    save_steps: int = 500
    train_batch_size: int = 0
    num_input_tokens_seen: int = 0
    total_flos: float = 0.0
    log_history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    stateful_callbacks: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class TrainerControl:
    """What a callback may ask of the trainer; setting anything else is an error.

    Attributes:
      should_training_stop: End the run after this step.
      should_epoch_stop: Go on with the next pass over the data after this step.
      should_save: Write a checkpoint after this step, or after this epoch from `on_epoch_end`.
      should_evaluate: Evaluate after this step, or after this epoch.
      should_log: Make a log record of this step.
    """

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, in transformers' form."""
        return {"args": dataclasses.asdict(self), "attributes": {}}
