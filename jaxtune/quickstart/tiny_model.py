"""The tiny Llama that ships with the package learns a task that it was never shown."""

from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.console import say
from jaxtune.language_model import LanguageModel
from jaxtune.quickstart.asking import ask
from jaxtune.quickstart.options import Quickstart
from jaxtune.quickstart.peft_check import check_in_peft, tell_how_to_load
from jaxtune.quickstart.tasks import LONGEST, NEW_TASK, TASKS, draw_words, prompt, solve, text

SHOWN = ("llama", "gemma", "mistral", "jaxtune")  # printed before and after; never trained on
TRAINED, HELD_OUT = 2000, 100  # words
STEPS = 200
ROW = 40  # tokens
GOOD = 80  # right answers of `HELD_OUT` that make a good run


def packaged_model_folder() -> Path:
    """The folder of the model that ships with the package, in Hugging Face's form."""
    return Path(str(resources.files("jaxtune.quickstart"))) / "model"


def words(seed: int) -> tuple[list[str], list[str]]:
    """Words to train on and held-out words, all different, none of them shown."""
    drawn = draw_words(np.random.default_rng(seed), TRAINED + HELD_OUT + len(SHOWN))
    drawn = [word for word in drawn if word not in SHOWN]
    return drawn[:TRAINED], drawn[TRAINED : TRAINED + HELD_OUT]


def run(options: Quickstart) -> int:
    """Tune the packaged model and report.

    Args:
      options: `model` and `dataset` are None.

    Returns:
      0, or 1 if fewer than `GOOD` answers are right afterwards.
    """
    # Its numbers are meant to be the same on every machine, and it is too small to be slow.
    with jax.default_matmul_precision("highest"):
        return _run(options)


def load() -> tuple[LanguageModel, Any]:
    """The packaged model in float32, and its tokenizer."""
    return FastLanguageModel.from_pretrained(
        str(packaged_model_folder()),
        max_seq_length=ROW,
        dtype="float32",
        load_in_4bit=False,
        use_gradient_checkpointing=False,
    )


def adapt(model: LanguageModel, seed: int) -> LanguageModel:
    """The model with a LoRA adapter that changes nothing yet."""
    return FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, random_state=seed, use_gradient_checkpointing=False
    )


def train(model: LanguageModel, tokenizer: Any, trained: list[str], options: Quickstart) -> Any:
    """Train the adapter on the new task.

    Args:
      model: With its adapter.
      tokenizer: Of the model.
      trained: Words of the examples.
      options: Steps and seed.

    Returns:
      The trainer, after its run.
    """
    trainer = SFTTrainer(
        model=model,
        tokenizer=tokenizer,
        train_dataset=[{"text": text(NEW_TASK, word)} for word in trained],
        args=SFTConfig(
            max_steps=options.steps or STEPS,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=1,
            learning_rate=3e-3,
            warmup_steps=5,
            seed=options.seed,
        ),
    )
    trainer.train()
    return trainer


def _run(options: Quickstart) -> int:
    folder = str(packaged_model_folder())
    say("1. Loading the tiny Llama that ships with jaxtune")
    model, tokenizer = load()
    say(
        f"   It knows {len(TASKS)} tasks: {', '.join(TASKS)}. It was never shown `{NEW_TASK}`.",
        "",
        "2. Adding a LoRA adapter, which changes nothing yet, and asking",
    )
    model = adapt(model, options.seed)
    trained, held_out = words(options.seed)
    before = _ask(model, held_out)
    say("", f"3. Training the adapter on {len(trained):,} examples of `{NEW_TASK}`")
    trainer = train(model, tokenizer, trained, options)
    say("", "4. Asking the same again")
    after = _ask(model, held_out)
    say("", f"5. Writing the adapter to {options.output}/")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    tell_how_to_load(folder, options.output)
    check_in_peft(model, folder, options.output, [prompt(NEW_TASK, word) for word in SHOWN])
    say("", f"Right answers on held-out words: {before} before, {after} after, of {HELD_OUT}.")
    if after < GOOD:
        say(
            f"That is fewer than {GOOD}: after {trainer.state.global_step} steps the model has not "
            "learnt the task. Leave --steps out, or raise it."
        )
        return 1
    return 0


def _ask(model: LanguageModel, held_out: list[str]) -> int:
    """Print the answers to the shown words; return how many held-out words are answered right."""
    asked = [*SHOWN, *held_out]
    answers = ask(model, [prompt(NEW_TASK, word) for word in asked], max_new_tokens=LONGEST + 2)
    right = [answer == solve(NEW_TASK, word) for word, answer in zip(asked, answers, strict=True)]
    for word, answer, good in zip(SHOWN, answers, right, strict=False):
        verdict = "right" if good else f"should be {solve(NEW_TASK, word)}"
        say(f"   {prompt(NEW_TASK, word) + ' ' + answer:<36} {verdict}")
    count = sum(right[len(SHOWN) :])
    say(f"   {count} of {len(held_out)} held-out words are answered right.")
    return count
