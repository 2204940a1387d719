"""Evaluating a model on tokenised rows: mean losses over tokens, and predictions."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxtune import processes
from jaxtune.data.batch import IGNORE, Batch
from jaxtune.data.collate import bucket_lengths, collate
from jaxtune.data.rows import TokenizedRows
from jaxtune.language_model import LanguageModel
from jaxtune.models.placement import devices_of, split_rows
from jaxtune.training.evaluation_step import Preprocess, evaluation_step
from jaxtune.training.state import EvalPrediction
from jaxtune.training.step import split

# Logits that are kept where nothing makes predictions of them, bytes; one batch is no more.
LOGIT_BYTES = 1 << 30
_ARGMAX = "preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(axis=-1)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is asked of the rows.

    Attributes:
      batch_size: Rows of a batch, on each device.
      max_length: Longest row, tokens.
      label_smoothing: As in training.
      compute_metrics: Function of an `EvalPrediction`; None: losses alone.
      preprocess: What predictions are made of logits and labels; None: the logits.
      predicts: Predictions are wanted.
      told: Called after each batch with its number of rows.
    """

    batch_size: int
    max_length: int
    label_smoothing: float = 0.0
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None
    preprocess: Preprocess | None = None
    predicts: bool = False
    told: Callable[[int], None] = lambda _: None


def evaluate(
    model: LanguageModel, rows: TokenizedRows, asked: Evaluation, prefix: str
) -> tuple[dict[str, Any], EvalPrediction | None]:
    """Metrics of the rows, under transformers' and TRL's names, and predictions.

    The loss is the sum of all token losses over all tokens that count: transformers' mean of the
    means of batches depends on how rows are batched. Likewise entropy and accuracy.

    Args:
      model: Not changed.
      rows: Taken longest first.
      asked: What is wanted of them.
      prefix: Of the names.

    Returns:
      ({prefix_loss, prefix_entropy, prefix_mean_token_accuracy, those of `compute_metrics`,
      prefix_runtime (s), prefix_samples_per_second, prefix_steps_per_second}, predictions or None).

    Raises:
      ValueError: Logits would be kept that are too large, or `compute_metrics` gives no dict.
    """
    started = time.perf_counter()
    preprocess = asked.preprocess
    if asked.predicts and preprocess is None:
        _check_logits(rows, model.config.vocab_size)
        preprocess = _logits
    found = _Predictions(rows) if asked.predicts else None
    totals = dict.fromkeys(("loss", "entropy", "correct", "tokens"), 0.0)
    graphdef, trainable, frozen = split(model)
    waiting: list[tuple[np.ndarray, Any]] = []

    def read(behind: int = 0) -> None:
        while len(waiting) > behind:
            chosen, (sums, predictions) = waiting.pop(0)
            for name, value in sums.items():
                totals[name] += float(value)
            if found is not None:
                found.take(chosen, jax.tree.map(processes.on_host, predictions))

    batches = 0
    for chosen, batch in _batches(rows, asked, devices_of(model.carried.mesh)):
        batch = split_rows(batch, model.carried.mesh)
        made = evaluation_step(
            graphdef,
            trainable,
            frozen,
            batch,
            label_smoothing=asked.label_smoothing,
            preprocess=preprocess if asked.predicts else None,
        )
        waiting.append((chosen, made))
        read(behind=1)
        batches += 1
        asked.told(len(chosen))
    read()
    tokens = max(totals["tokens"], 1.0)
    metrics: dict[str, Any] = {
        "loss": totals["loss"] / tokens,
        "entropy": totals["entropy"] / tokens,
        "mean_token_accuracy": totals["correct"] / tokens,
    }
    predictions = None if found is None else found.whole()
    if predictions is not None and asked.compute_metrics is not None:
        metrics |= _checked(asked.compute_metrics(predictions))
    seconds = time.perf_counter() - started
    metrics |= {
        "runtime": round(seconds, 4),
        "samples_per_second": round(len(rows) / seconds, 3),
        "steps_per_second": round(batches / seconds, 3),
    }
    start = f"{prefix}_"
    named = {start + name.removeprefix(start): value for name, value in metrics.items()}
    return named, predictions


def _batches(
    rows: TokenizedRows, asked: Evaluation, devices: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Numbers of rows and their batch: of like lengths, so that there is little padding."""
    lengths = np.array([len(row) for row in rows.rows])
    order = np.argsort(-lengths, kind="stable")
    buckets = bucket_lengths(lengths, asked.max_length)
    size = asked.batch_size * devices
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        length = next(bucket for bucket in buckets if bucket >= lengths[chosen[0]])
        yield chosen, collate(rows, chosen, size, length)


class _Predictions:
    """Arrays of all rows, in the rows' order, filled batch by batch."""

    def __init__(self, rows: TokenizedRows) -> None:
        """Hold the labels."""
        self.longest = max(map(len, rows.rows))
        self.labels = np.full((len(rows), self.longest), IGNORE, np.int64)
        for number, row in enumerate(rows.rows):
            self.labels[number, : len(row)] = row if rows.labels is None else rows.labels[number]
        self.lengths = [len(row) for row in rows.rows]
        self.arrays: Any = None

    def take(self, chosen: np.ndarray, made: Any) -> None:
        """Take the predictions of a batch, [rows, T, ...]; what is behind a row's end goes."""
        if self.arrays is None:
            shape = self.labels.shape
            self.arrays = jax.tree.map(
                lambda leaf: np.full((*shape, *leaf.shape[2:]), IGNORE, leaf.dtype), made
            )

        def put(array: np.ndarray, leaf: np.ndarray) -> None:
            for place, number in enumerate(chosen):
                length = self.lengths[number]
                array[number, :length] = leaf[place, :length]

        jax.tree.map(put, self.arrays, made)

    def whole(self) -> EvalPrediction:
        """All of them."""
        return EvalPrediction(predictions=self.arrays, label_ids=self.labels)


def _logits(logits: jax.Array, _: jax.Array) -> jax.Array:
    return logits


def _check_logits(rows: TokenizedRows, vocab_size: int) -> None:
    """Refuse to keep logits of many rows: they are what the loss never needs."""
    needed = 4 * len(rows) * max(map(len, rows.rows)) * vocab_size
    if needed > LOGIT_BYTES:
        raise ValueError(
            "predictions are logits where nothing else is made of them, and may take "
            f"{LOGIT_BYTES / 2**30:.0f} GiB; got {len(rows):,} rows that would take "
            f"{needed / 2**30:,.0f} GiB. Pass {_ARGMAX} to the trainer, fewer rows, or "
            "prediction_loss_only=True."
        )


def _checked(metrics: Any) -> dict[str, Any]:
    """What `compute_metrics` returned, NumPy's and JAX's scalars as numbers."""
    if not isinstance(metrics, dict):
        raise TypeError(
            "`compute_metrics` must return a dict {name: number}; got "
            f"{type(metrics).__name__}. Return for example {{'accuracy': 0.5}}."
        )
    return {
        name: value.item() if getattr(value, "ndim", None) == 0 else value
        for name, value in metrics.items()
    }
