"""Packing, padding-free and re-split runs of the trainer, beside TRL's and beside padded ones."""

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import transformers

from jaxtune import SFTConfig, SFTTrainer
from jaxtune.adapters.peft_form import peft_names
from jaxtune.training.step import split
from tests.families import VARIANTS
from tests.jaxtune.training.runs import SHARED, adapted, records_of, trainer_of
from tests.oracles import Oracle, make_oracle
from tests.tolerances import tolerance
from tests.trl_runs import run_trl
from tests.words import ragged_rows, word_tokenizer

ROWS = 40
# All 13 rows, of at most 14 tokens: three micro-batches of 56 are enough.
WINDOW = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("packing"), initializer_range=0.3)


def trl_records(oracle: Oracle, folder: Path, **options: Any) -> list[dict[str, float]]:
    """Records of TRL's run. On a CPU it isolates packed documents by their positions."""
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    model = peft.PeftModel.from_pretrained(base, oracle.adapter_folder, is_trainable=True)
    options = {**SHARED, "packing": True, **options}
    trainer = run_trl(model, ragged_rows(ROWS), word_tokenizer(), folder, **options)
    return [record for record in trainer.state.log_history if "loss" in record]


def check_same(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs)
    for mine, their in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm", "learning_rate", "epoch"):
            limit = tolerance("float32", f"trl_{key}")
            least = 5e-5 if key == "epoch" else 1e-12  # ours is rounded to four places
            assert mine[key] == pytest.approx(float(their[key]), rel=limit, abs=least), (mine, key)


@pytest.mark.parity
@pytest.mark.parametrize(
    "options",
    [
        {"packing_strategy": "bfd", "max_length": 40},
        pytest.param({"packing_strategy": "bfd_split", "max_length": 12}, marks=[pytest.mark.slow]),
    ],
    ids=lambda options: options["packing_strategy"],
)
def test_a_packed_run_is_that_of_trl(
    options: dict[str, Any], oracle: Oracle, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own run; nothing of ours warns here
        theirs = trl_records(oracle, tmp_path, **options)
    trainer = trainer_of(adapted(oracle), rows=ROWS, packing=True, **options)
    trainer.train()
    check_same(records_of(trainer), theirs)


@pytest.fixture(scope="module")
def padded_run(oracle: Oracle) -> SFTTrainer:
    trainer = trainer_of(adapted(oracle), resplit=False, **WINDOW)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("resplit", {}),
        pytest.param("flat", {"padding_free": True, "resplit": False}, marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_the_padded_run(
    kind: str, options: dict[str, Any], oracle: Oracle, padded_run: SFTTrainer
) -> None:
    trainer = trainer_of(adapted(oracle), **WINDOW, **options)
    assert trainer._plan().kind == kind
    trainer.train()
    check_same(records_of(trainer), records_of(padded_run))
    for name in ("epoch", "num_input_tokens_seen", "total_flos", "max_steps"):
        assert getattr(trainer.state, name) == getattr(padded_run.state, name)


@pytest.mark.slow
def test_eight_rows_a_step_make_one_run_however_they_are_cut(oracle: Oracle) -> None:
    """As 2 x 4, as 8 x 1 and re-split: losses, and the way that the parameters went."""
    start = {n: np.asarray(leaf) for n, leaf in peft_names(split(adapted(oracle))[1]).items()}
    runs, ways = [], []
    for options in (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "resplit": False},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "resplit": False},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "padding_free": True},
    ):
        trainer = trainer_of(adapted(oracle), rows=ROWS, optim="sgd", **options)
        trainer.train()
        runs.append([record["loss"] for record in records_of(trainer)])
        ended = peft_names(split(trainer.model)[1])
        ways.append(np.concatenate([(np.asarray(ended[n]) - start[n]).ravel() for n in start]))
    assert trainer._plan().kind == "resplit"
    for losses, way in zip(runs[1:], ways[1:], strict=True):
        assert losses == pytest.approx(runs[0], rel=tolerance("float32", "trl_loss"))
        apart = np.linalg.norm(way - ways[0]) / np.linalg.norm(ways[0])
        assert apart <= tolerance("float32", "adamw_steps")


@pytest.mark.slow
def test_wrapped_rows_are_full_and_lose_nothing(oracle: Oracle) -> None:
    """And each piece is a document: TRL's rows let it see those before it."""
    trainer = trainer_of(
        adapted(oracle),
        rows=ROWS,
        packing=True,
        packing_strategy="wrapped",
        max_steps=-1,
        num_train_epochs=1,
    )
    trainer.train()
    tokens = sum(len(row) for row in trainer.train_dataset.rows)
    assert trainer.state.num_input_tokens_seen == tokens
    assert trainer.state.global_step == math.ceil(math.ceil(tokens / 14) / 4)
    assert not trainer.train_dataset.truncated


def test_the_argument_overrides_the_option(oracle: Oracle) -> None:
    model = adapted(oracle)
    for option, argument, kind in ((False, True, "packed"), (True, False, "padded")):
        trainer = SFTTrainer(
            model,
            args=SFTConfig(packing=option, max_length=40, resplit=False),
            train_dataset=ragged_rows(ROWS),
            packing=argument,
        )
        assert trainer._plan().kind == kind
