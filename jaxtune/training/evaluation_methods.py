"""`evaluate` and `predict` of a trainer, under transformers' names."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtune.data.rows import TokenizedRows
from jaxtune.language_model import LanguageModel
from jaxtune.training.callbacks import CallbackHandler
from jaxtune.training.config import SFTConfig
from jaxtune.training.evaluation import Evaluation, evaluate
from jaxtune.training.evaluation_step import Preprocess
from jaxtune.training.inputs import check_rows
from jaxtune.training.interrupt import deferred_interrupt
from jaxtune.training.progress import evaluation_bar
from jaxtune.training.state import EvalPrediction, PredictionOutput

EvalRows = TokenizedRows | dict[str, TokenizedRows] | None


class EvaluationMethods:
    """Base of the trainer: what it does with a model and rows, apart from training.

    Attributes:
      model: The model.
      args: The options.
      callback_handler: The callbacks, the state and the control.
      eval_dataset: The tokenised rows to evaluate on, or several sets of them by name.
      compute_metrics: Function of an `EvalPrediction`, or None.
      preprocess_logits_for_metrics: What predictions are made of, or None: of logits.
      max_length: Longest row, tokens.
    """

    model: LanguageModel
    args: SFTConfig
    callback_handler: CallbackHandler
    eval_dataset: EvalRows
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None
    preprocess_logits_for_metrics: Preprocess | None
    max_length: int
    _tokenize: Callable[..., TokenizedRows]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, Any]:
        """Measure the model on rows; nothing of a run changes.

        Losses come from the kernel of training without its gradient, and logits exist a chunk of
        positions at a time. With `compute_metrics` its predictions are what
        `preprocess_logits_for_metrics` makes of each chunk: a JAX function of (logits [B, C, V],
        labels [B, C]), labels aligned with the input, that treats each position by itself. Without
        it they are the logits, which are kept only if those of all rows take at most 1 GiB.

        Args:
          eval_dataset: A data set, several by name, or the name of one of the trainer's; None: the
            trainer's own.
          ignore_keys: None; a model here has no outputs but logits.
          metric_key_prefix: Of the metrics' names; a data set's name is appended.

        Returns:
          {eval_loss, eval_entropy, eval_mean_token_accuracy, eval_num_tokens (trained on so far),
          eval_runtime (s), eval_samples_per_second, eval_steps_per_second, epoch, and those of
          `compute_metrics`}, also a record of `state.log_history`. The loss is a mean over tokens.

        Raises:
          ValueError: No rows, `ignore_keys`, or logits that are too large to keep.
        """
        given = self.eval_dataset if eval_dataset is None else self.eval_rows(eval_dataset)
        _check_ignored(ignore_keys)
        if given is None:
            raise ValueError(
                "an evaluation needs rows; the trainer has no `eval_dataset`. Pass one to it, or "
                "to evaluate()."
            )
        if isinstance(given, dict):
            found: dict[str, Any] = {}
            for name, rows in given.items():
                found |= self.evaluate(rows, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return found
        wanted = self.compute_metrics is not None and not self.args.prediction_loss_only
        metrics, _ = self._measure(given, metric_key_prefix, wanted)
        state = self.callback_handler.state
        metrics[f"{metric_key_prefix}_num_tokens"] = state.num_input_tokens_seen
        metrics["epoch"] = round(state.epoch, 4)
        # All of it or nothing: a run that is stopped in between would count it twice.
        with deferred_interrupt():
            self.log(metrics)
            self.callback_handler.tell("on_evaluate", metrics=metrics)
        return metrics

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """What the model predicts at each position of rows, and its metrics.

        Args:
          test_dataset: A data set.
          ignore_keys: None.
          metric_key_prefix: Of the metrics' names.

        Returns:
          Predictions as in `evaluate`, labels, and metrics.

        Raises:
          ValueError: As `evaluate`.
        """
        _check_ignored(ignore_keys)
        rows = self.eval_rows(test_dataset)
        if not isinstance(rows, TokenizedRows):
            raise TypeError(
                f"`test_dataset` must be one data set; got {type(test_dataset).__name__}. Call "
                "predict for each."
            )
        wanted = not self.args.prediction_loss_only
        metrics, found = self._measure(rows, metric_key_prefix, wanted)
        self.callback_handler.tell("on_predict", metrics=metrics)
        if found is None:
            return PredictionOutput(None, None, metrics)
        return PredictionOutput(found.predictions, found.label_ids, metrics)

    def log(self, logs: dict[str, Any]) -> None:
        """Append a record to the history, with the epoch and the step, and tell the callbacks.

        Args:
          logs: Names and values.
        """
        state = self.callback_handler.state
        record = {**logs, "epoch": round(state.epoch, 4), "step": state.global_step}
        state.log_history.append(record)
        self.callback_handler.tell("on_log", logs=record)

    def eval_rows(self, dataset: Any) -> EvalRows:
        """A data set, or several by name, tokenised as the training rows are and cut alike.

        Args:
          dataset: Anything that `train_dataset` may be, a mapping of names to such, the name of
            one of the trainer's own, tokenised rows, or None.

        Returns:
          The rows, or those of each name.
        """
        if dataset is None or isinstance(dataset, TokenizedRows):
            return dataset
        if isinstance(dataset, str) and isinstance(self.eval_dataset, dict):
            if dataset not in self.eval_dataset:
                raise ValueError(
                    f"`eval_dataset` must name one of {sorted(self.eval_dataset)}; got {dataset!r}."
                )
            return self.eval_dataset[dataset]
        if isinstance(dataset, Mapping):
            return {str(name): self._one_set(its) for name, its in dataset.items()}
        return self._one_set(dataset)

    def _one_set(self, dataset: Any) -> TokenizedRows:
        if isinstance(dataset, TokenizedRows):
            return dataset
        rows = self._tokenize(dataset)
        check_rows(rows)
        return rows

    def _measure(
        self, rows: TokenizedRows, prefix: str, predicts: bool
    ) -> tuple[dict[str, Any], EvalPrediction | None]:
        """Metrics of rows and, if wanted, predictions; the callbacks hear of each batch."""
        args = self.args
        with evaluation_bar(len(rows), disable=args.disable_tqdm) as bar:

            def told(count: int) -> None:
                bar.update(count)
                self.callback_handler.tell("on_prediction_step")

            asked = Evaluation(
                batch_size=args.per_device_eval_batch_size,
                max_length=self.max_length,
                label_smoothing=args.label_smoothing_factor,
                compute_metrics=self.compute_metrics,
                preprocess=self.preprocess_logits_for_metrics,
                predicts=predicts,
                told=told,
            )
            return evaluate(self.model, rows, asked, prefix)


def _check_ignored(ignore_keys: list[str] | None) -> None:
    if ignore_keys:
        raise ValueError(
            f"`ignore_keys` must be None: a model here has no outputs but logits; got "
            f"{ignore_keys}. Leave it out."
        )
