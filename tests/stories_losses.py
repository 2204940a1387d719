"""Print the losses of 100 LoRA steps of the real tiny Llama on gsm8k, as JSON; a script.

`python -m tests.stories_losses ASSETS [PRECISION]`: run on two machines, the lists can be compared.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.language_model import LanguageModel

STEPS = 100
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-3,
    "warmup_steps": 5,
    "optim": "adamw_torch",
    "disable_tqdm": True,
}


def tuned(
    assets: Path, *, r: int = 8, lora_alpha: int = 16, dtype: str = "float32", **options: Any
) -> tuple[LanguageModel, list[float]]:
    """The model after 100 steps, and the loss of each; `options` are the trainer's."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(assets / "stories260K"), max_seq_length=64, dtype=dtype, load_in_4bit=False
    )
    FastLanguageModel.get_peft_model(model, r=r, lora_alpha=lora_alpha)
    lines = (assets / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()[:400]
    rows = [json.loads(line) for line in lines]
    trainer = SFTTrainer(
        model,
        tokenizer=tokenizer,
        train_dataset=[{"text": f"{row['question']}\n{row['answer']}"} for row in rows],
        args=SFTConfig(**{**OPTIONS, **options}),
    )
    trainer.train()
    return model, [record["loss"] for record in trainer.state.log_history[:-1]]


if __name__ == "__main__":
    with jax.default_matmul_precision(sys.argv[2] if len(sys.argv) > 2 else "highest"):
        losses = tuned(Path(sys.argv[1]))[1]
    sys.stdout.write(json.dumps({"platform": jax.default_backend(), "losses": losses}) + "\n")
