"""One start of the notebook, in a process of its own: `python -m ... REQUEST RESULT`.

The statements are those of a user's notebook; between them the age of the process is noted.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from jaxtune.bench.age import process_age

# What is timed, in this order.
LABELS = {
    "imports": "imports",
    "load": "load, add the adapter",
    "prepare": "rows to tokens",
    "first_step": "first step",
    "training": "the other steps",
    "save": "save",
}
STEPS = 60
PROMPT = """Below is an instruction that describes a task, paired with an input that provides \
further context. Write a response that appropriately completes the request.

### Instruction:
{}

### Input:
{}

### Response:
{}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a start is told.

    Attributes:
      model: Folder of the model.
      dataset: File of rows.
      length: `max_seq_length`, tokens.
      rank: Of LoRA.
      bits: 4, or 16.
      output: Folder for the adapter.
      cache: Folder for compiled programs.
    """

    model: str
    dataset: str
    length: int
    rank: int
    bits: int
    output: str
    cache: str


def run(request: Request) -> dict[str, Any]:
    """Do what the notebook does.

    Args:
      request: Paths and sizes.

    Returns:
      A JSON object: seconds by phase, and what was seen.
    """
    from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer, runtime  # noqa: F401  a notebook's first line

    ages = [0.0, _age()]
    runtime.use_compile_cache(Path(request.cache))  # in place of the user's own
    model, tokenizer = FastLanguageModel.from_pretrained(
        request.model, max_seq_length=request.length, load_in_4bit=request.bits == 4
    )
    model = FastLanguageModel.get_peft_model(model, r=request.rank, lora_alpha=request.rank)
    ages.append(_age())
    seen = _train(request, model, tokenizer, ages)
    model.save_pretrained(request.output)
    tokenizer.save_pretrained(request.output)
    ages.append(_age())
    return {"seconds": dict(zip(LABELS, _differences(ages), strict=True)), **seen, **_machine()}


def _train(request: Request, model: Any, tokenizer: Any, ages: list[float]) -> dict[str, Any]:
    """Make the trainer and train; notes when it was made, its first loss was there, and its last.

    Returns:
      Steps, losses, plan, and programs compiled: in all, and after the first step.
    """
    from jaxtune import SFTConfig, SFTTrainer, TrainerCallback
    from jaxtune.bench.measure import COMPILED, heard

    class FirstLoss(TrainerCallback):
        compiled: int | None = None

        def on_log(self, *_: Any, **__: Any) -> None:
            if self.compiled is None:
                ages.append(_age())
                self.compiled = events.count(COMPILED)

    first = FirstLoss()
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=rows_of(request.dataset, tokenizer.eos_token),
        dataset_text_field="text",
        max_seq_length=request.length,
        packing=False,
        callbacks=[first],
        args=SFTConfig(
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            warmup_steps=5,
            max_steps=STEPS,
            learning_rate=2e-4,
            logging_steps=1,
            optim="adamw_8bit",
            weight_decay=0.01,
            lr_scheduler_type="linear",
            seed=3407,
            save_strategy="no",
            disable_tqdm=True,
            output_dir=request.output,
        ),
    )
    ages.append(_age())
    with heard() as events:
        stats = trainer.train()
    ages.append(_age())
    return {
        "steps": stats.global_step,
        "losses": [record["loss"] for record in trainer.state.log_history if "loss" in record],
        "plan": model.model.remat,
        "compiled": events.count(COMPILED),
        "compiled_after_first_step": events.count(COMPILED) - (first.compiled or 0),
    }


def rows_of(dataset: str, end: str) -> list[dict[str, str]]:
    """Rows of a file as texts: Alpaca's fields in its prompt, or a column `text` as it is.

    Raises:
      ValueError: Neither is there, or the file cannot be read.
    """
    from jaxtune.data.sources import opened

    rows = opened(dataset)
    if "text" in rows.column_names:
        return [{"text": row["text"] + end} for row in rows]
    names = ("instruction", "input", "output")
    if not set(names) <= set(rows.column_names):
        raise ValueError(
            f"--dataset must have a column `text`, or {', '.join(names)}; {dataset} has "
            f"{', '.join(rows.column_names)}."
        )
    return [{"text": PROMPT.format(*(row[name] for name in names)) + end} for row in rows]


def _machine() -> dict[str, Any]:
    """Where it ran, and the memory that it took."""
    from jaxtune.machine import probe
    from jaxtune.memory import memory_stats

    machine = probe()
    return {
        "device": {"kind": machine.devices[0], "platform": machine.backend},
        "driver": machine.driver,
        "peak_bytes": memory_stats().max_memory_reserved,
    }


def _age() -> float:
    """Seconds since the process began; from here on where nothing tells."""
    age = process_age()
    if age is None:
        raise ValueError(
            "the age of a process must be known to time a start; this system does not tell it. "
            "Install psutil."
        )
    return age


def _differences(ages: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(ages)]


if __name__ == "__main__":
    given, result = map(Path, sys.argv[1:])
    found = run(Request(**json.loads(given.read_text("utf-8"))))
    result.write_text(json.dumps(found), "utf-8")
