"""A tiny adapted model and a trainer over it, the same for every test of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtune import SFTConfig, SFTTrainer
from jaxtune.language_model import LanguageModel
from tests.loaded import load_adapted
from tests.words import ragged_rows, word_tokenizer

if TYPE_CHECKING:  # torch and peft, which a process that only trains need not wait for
    from tests.oracles import Oracle

SHARED: dict[str, Any] = {
    "max_steps": 7,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-2,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "seed": 11,
    "max_length": 14,
    "logging_steps": 1,
    "optim": "adamw_torch",
}
ARGUMENTS = (
    "callbacks",
    "compute_metrics",
    "data_collator",
    "eval_dataset",
    "formatting_func",
    "optimizers",
    "peft_config",
    "preprocess_logits_for_metrics",
    "train_dataset",
)


def adapted(oracle: "Oracle") -> LanguageModel:
    """The oracle's adapter over its base, with the word tokenizer."""
    return adapted_in(oracle.adapter_folder)


def adapted_in(adapter_folder: Path) -> LanguageModel:
    """The same from the adapter's folder."""
    model = load_adapted(adapter_folder)
    model.carried.tokenizer = word_tokenizer()
    return model


def trainer_of(
    model: LanguageModel, rows: int = 13, kind: type[SFTTrainer] = SFTTrainer, **options: Any
) -> SFTTrainer:
    """A trainer with the shared options, changed by `options`; 13 rows leave a remainder."""
    given = {"train_dataset": ragged_rows(rows)}
    given |= {name: options.pop(name) for name in ARGUMENTS if name in options}
    return kind(model, args=SFTConfig(**{**SHARED, "disable_tqdm": True, **options}), **given)


def records_of(trainer: SFTTrainer) -> list[dict[str, float]]:
    """The log records of a finished run, without its summary."""
    return [record for record in trainer.state.log_history if "loss" in record]
