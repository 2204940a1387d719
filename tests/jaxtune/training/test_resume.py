"""A resumed run is the run that was not interrupted, bit for bit; what does not fit is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from jaxtune import SFTTrainer, TrainerCallback
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import LanguageModel
from jaxtune.models.build import train_all
from jaxtune.training.named_leaves import named_leaves
from tests.families import VARIANTS
from tests.jaxtune.training.runs import records_of, trainer_of
from tests.loaded import load_base
from tests.oracles import Oracle, make_oracle
from tests.words import word_tokenizer


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("resumed"), initializer_range=0.3)


def made(oracle: Oracle, dtype: str = "float32", **lora: Any) -> LanguageModel:
    """The base with a new adapter; without options, every weight trained."""
    model = load_base(oracle.folder, dtype)
    model.carried.tokenizer = word_tokenizer()
    if lora:
        return FastLanguageModel.get_peft_model(model, **lora)
    train_all(model)
    model.carried.full_finetuning = True
    return model


LORA = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
DROPOUT = {**LORA, "lora_dropout": 0.5}
WHOLE = {**LORA, "modules_to_save": ["lm_head"], "rank_pattern": {"layers.1.mlp.down_proj": 2}}
# What is trained, and with what options; 13 rows make 4 windows an epoch, the last one short.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (LORA, {"gradient_accumulation_steps": 1}),
    "accumulated, 8-bit states, short records": (
        {**LORA, "r": 64},
        {"optim": "adamw_8bit", "logging_steps": 3},
    ),
    "dropout": (DROPOUT, {}),
    "whole weights and ranks in bfloat16": ({**WHOLE, "dtype": "bfloat16"}, {}),
    "full, 8-bit states, bfloat16": ({"dtype": "bfloat16"}, {"optim": "adamw_8bit"}),
    "lion, constant": (LORA, {"optim": "lion_8bit", "lr_scheduler_type": "constant_with_warmup"}),
    "adafactor": (LORA, {"optim": "adafactor"}),
    "paged": (LORA, {"optim": "paged_adamw_8bit"}),
}
QUICK = list(RUNS)[:5]


class Kept(TrainerCallback):
    """Keeps the optimizer's state of the last step, which the trainer does not show."""


def finished(trainer: SFTTrainer) -> dict[str, np.ndarray]:
    """Every trained value, bit for bit."""
    named = named_leaves(nnx.state(trainer.model, nnx.Param))
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def tree_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, its files' checksums among it."""
    return json.loads((folder / "resume.json").read_text())


def assert_same_run(one: Path, other: Path, *trainers: SFTTrainer) -> None:
    """Parameters, optimizer states, records and summaries of two runs are the same."""
    first, second = (finished(trainer) for trainer in trainers)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    records = [records_of(trainer) for trainer in trainers]
    assert records[0] == records[1]
    for field in ("epoch", "global_step", "num_input_tokens_seen", "total_flos"):
        assert getattr(trainers[0].state, field) == getattr(trainers[1].state, field)
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in trainers]
    assert losses[0] == losses[1]
    from tests.jaxtune.training.saved import arrays_of

    mine, theirs = arrays_of(one), arrays_of(other)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in RUNS]
)
def test_a_resumed_run_is_the_uninterrupted_one(oracle: Oracle, tmp_path: Path, name: str) -> None:
    """Seven steps; and three, then a new model and trainer, then four."""
    model, options = RUNS[name]
    options = {"save_steps": 3, **options}
    whole = trainer_of(made(oracle, **model), output_dir=tmp_path / "whole", **options)
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    half = trainer_of(made(oracle, **model), output_dir=tmp_path / "half", **options)
    half.train(resume_from_checkpoint=True)
    last = (tmp_path / "whole" / "checkpoint-7", tmp_path / "half" / "checkpoint-7")
    assert_same_run(*last, whole, half)
