"""Make the packaged model from nothing: `python -m jaxtune.quickstart.pretrain OUT`.

A Llama of 0.2 million parameters learns the tasks of `tasks.TASKS` by full fine-tuning, its loss
on the answers alone; five to ten minutes on two cores. The same seed on the same machine gives the
same bytes. What was tried, and how well it went, is in LOG.md beside this file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import tyro
from transformers import LlamaConfig

from jaxtune import SFTConfig, SFTTrainer, runtime
from jaxtune.console import say
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.models.build import build
from jaxtune.models.carried import Carried
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.quickstart.asking import right_answers
from jaxtune.quickstart.characters import character_tokenizer
from jaxtune.quickstart.tasks import TASKS, draw_word, draw_words, prompt, solve

RANGE = 256  # tokens that the model can read
ROW = 40  # tokens of a row; the longest is `double` of eight letters, 37
ROWS = 64_000
BATCH = 64
IGNORE = -100


def new_model(seed: int) -> LanguageModel:
    """A Llama with random weights, every leaf trained, and its tokenizer."""
    tokenizer = character_tokenizer(RANGE)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=RANGE,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    hf_config = llama.to_dict()
    family = with_verbs(LlamaForCausalLM)
    config = family.config_from_hf(hf_config)
    model = build(family, config, "random", seed=seed, initializer_range=0.05)
    model.carried = Carried(
        tokenizer=tokenizer,
        hf_config=hf_config,
        config_json=llama.to_diff_dict(),
        max_seq_length=ROW,
        full_finetuning=True,
    )
    model.model.remat = "none"
    return model


def examples(tokenizer: Any, count: int, seed: int) -> list[dict[str, list[int]]]:
    """Random tasks on random words; labels on the answer and the end of text alone."""
    draw, names = np.random.default_rng(seed), list(TASKS)
    questions = [(names[draw.integers(len(names))], draw_word(draw)) for _ in range(count)]
    asked = tokenizer([prompt(*question) for question in questions])["input_ids"]
    answered = tokenizer(
        [f" {solve(*question)}" for question in questions], add_special_tokens=False
    )["input_ids"]
    rows = []
    for before, answer in zip(asked, answered, strict=True):
        after = [*answer, tokenizer.eos_token_id]
        rows.append({"input_ids": before + after, "labels": [IGNORE] * len(before) + after})
    return rows


def pretrain(out: Path, /, *, steps: int = 2500, seed: int = 0) -> LanguageModel:
    """Train the model and write it.

    Args:
      out: Folder to write to; created if need be.
      steps: Optimizer steps of 64 rows.
      seed: Of the weights, the rows and their order.

    Returns:
      The model.
    """
    model = new_model(seed)
    trainer = SFTTrainer(
        model=model,
        train_dataset=examples(model.carried.tokenizer, min(ROWS, steps * BATCH), seed),
        args=SFTConfig(
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            adam_beta2=0.99,
            weight_decay=0.01,
            seed=seed,
        ),
    )
    trainer.train()
    model.save_pretrained_merged(out)
    return model


def main() -> None:
    """Pretrain, and say how well each task is done on words of another seed."""
    runtime.use_compile_cache()
    model = tyro.cli(pretrain)
    words = draw_words(np.random.default_rng(1_000_003), 50)
    for task in TASKS:
        right = right_answers(model, [(task, word) for word in words])
        say(f"{task}: {sum(right)} of {len(right)} right")


if __name__ == "__main__":
    main()
