"""A run that is the same in one process and in several; its test starts it in two."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer, TrainerCallback, processes
from jaxtune.data.collate import Place
from jaxtune.models.placement import split_rows
from jaxtune.training.named_leaves import in_host_memory, named_leaves
from jaxtune.training.step import split, window_gradient

ROWS = [{"text": " ".join(f"w{n % 29}" for n in range(i, i + 3 + i % 9))} for i in range(23)]
STEPS, ACCUMULATION = 10, 2
FOUR_BITS = "four-bits"  # name of a folder of such weights


class StopsAfter(TrainerCallback):
    """Ends a run early, as one that is to be resumed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


class Announces(TrainerCallback):
    """Prints each step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        print("step", state.global_step, flush=True)


def trainer_of(model: Path, mesh: dict[str, int] | None = None, **options: Any) -> SFTTrainer:
    """A trainer over 4 rows a micro-batch, on however many devices."""
    loaded, _ = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=32, load_in_4bit=model.name == FOUR_BITS, mesh=mesh
    )
    FastLanguageModel.get_peft_model(loaded, r=2, lora_dropout=0.0, init_lora_weights=False)
    callbacks = options.pop("callbacks", [])
    given = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4 // math.prod((mesh or {}).values()),
        "gradient_accumulation_steps": ACCUMULATION,
        "learning_rate": 5e-2,
        "warmup_steps": 0,
        "optim": "sgd",
        "report_to": "none",
    }
    args = SFTConfig(**{**given, **options})
    return SFTTrainer(
        loaded, args=args, train_dataset=ROWS, eval_dataset=ROWS[:7], callbacks=callbacks
    )


def losses_of(trainer: SFTTrainer) -> list[float]:
    """Of the steps of a run, and of those that it resumed."""
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def gradient_of(trainer: SFTTrainer) -> dict[str, np.ndarray]:
    """Of the first step, by the names of the leaves."""
    window = next(iter(trainer._plan().windows(trainer.train_dataset, Place())))
    graphdef, trainable, frozen = split(trainer.model)
    batch = split_rows(window.batch, trainer.model.carried.mesh)
    found = jax.jit(window_gradient, static_argnums=(0, 4))(
        graphdef, trainable, frozen, batch, ACCUMULATION
    )
    return named_leaves(in_host_memory(found[0]))


def measured(model: Path, output: Path, mesh: dict[str, int] | None = None) -> dict[str, Any]:
    """What must not depend on the number of processes, with arrays by name beside it."""
    found, arrays = {}, {}
    for optim, rate in (("sgd", 1e-2), ("adamw_torch", 1e-3)):
        trainer = trainer_of(model, mesh, optim=optim, learning_rate=rate, disable_tqdm=True)
        if optim == "sgd":
            arrays |= {f"gradient {n}": leaf for n, leaf in gradient_of(trainer).items()}
        trainer.train()
        found[f"{optim} losses"] = losses_of(trainer)
        leaves = named_leaves(in_host_memory(split(trainer.model)[1]))
        arrays |= {f"{optim} {name}": leaf for name, leaf in leaves.items()}
    found["evaluated"] = trainer.evaluate()["eval_loss"]
    predicted = trainer.predict(ROWS[:5]).predictions
    trainer.save_model(output / "saved")
    return {**found, "arrays": {**arrays, "predicted": predicted}}


def main() -> None:
    """Join, then do what the first argument names."""
    what, model, output, axis, port, number = sys.argv[1:7]
    processes.join(f"127.0.0.1:{port}", 2, int(number), heartbeat_timeout=10)
    folder, mesh = Path(output), {axis: 2}
    if what == "measure":
        found = measured(Path(model), folder, mesh)
        np.savez(folder / f"arrays-{number}.npz", **found.pop("arrays"))
        (folder / f"found-{number}.json").write_text(json.dumps(found))
    held = {"output_dir": folder, "save_steps": 1, "save_total_limit": 3}
    if what == "resume":
        trainer = trainer_of(Path(model), mesh, callbacks=[StopsAfter(6)], **held)
        trainer.train(resume_from_checkpoint=True)
    if what == "long":
        held |= {"max_steps": 100000, "callbacks": [Announces()], "disable_tqdm": True}
        trainer_of(Path(model), mesh, **held).train()


if __name__ == "__main__":
    main()
