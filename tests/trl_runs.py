"""TRL's own trainer on a CPU: the oracle of whole runs."""

from pathlib import Path
from typing import Any

import datasets
import transformers
import trl


def run_trl(
    model: Any,
    rows: list[dict[str, str]],
    tokenizer: Any,
    folder: Path,
    *,
    optimizers: tuple[Any, Any] = (None, None),
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> trl.SFTTrainer:
    """The trainer after its run.

    Args:
      model: A torch model, of transformers or peft.
      rows: With the column `text`.
      tokenizer: Of transformers.
      folder: For what it writes.
      optimizers: A torch optimizer and None, or neither.
      arguments: More of the trainer's own, such as an `eval_dataset` or callbacks.
      options: Of its `SFTConfig`; nothing is saved unless they say so.
    """
    args = trl.SFTConfig(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "bf16": False,
            "fp16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "loss_type": "nll",
            **options,
        }
    )
    trainer = trl.SFTTrainer(
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        optimizers=optimizers,
        **(arguments or {}),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer
