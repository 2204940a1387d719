"""A plan that offloads is tried on the first batch before it is used."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.data.batch import Batch
from jaxtune.language_model import LanguageModel
from jaxtune.training import loop, offload_check
from jaxtune.training.offload_check import LIMIT, check_offload, largest_difference
from tests.packaged import packaged_model_folder


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    base, _ = FastLanguageModel.from_pretrained(
        str(packaged_model_folder()), max_seq_length=16, load_in_4bit=False
    )
    return FastLanguageModel.get_peft_model(base, r=2, init_lora_weights=False)


def trainer_of(model: LanguageModel, **options: Any) -> SFTTrainer:
    args = SFTConfig(per_device_train_batch_size=2, disable_tqdm=True, **options)
    return SFTTrainer(model=model, train_dataset=[{"text": "abc"}] * 8, args=args)


def batch(rows: int = 4) -> Batch:
    ids = np.random.default_rng(0).integers(3, 20, (rows, 8)).astype(np.int32)
    return Batch(input_ids=ids, labels=ids, layout="causal")


def test_equal_gradients_pass_and_the_plan_stays(model) -> None:
    model.model.remat = "offload"
    check_offload(model, batch(), 2)
    assert model.model.remat == "offload"


def test_wrong_gradients_are_refused_before_a_step(model, monkeypatch) -> None:
    right, graphdefs = offload_check.window_gradient, []

    def wrong(graphdef, *parts):
        graphdefs.append(graphdef)
        gradient, *others = right(graphdef, *parts)
        factor = 1.1 if graphdef is not graphdefs[0] else 1.0
        return jax.tree.map(lambda leaf: leaf * factor, gradient), *others

    monkeypatch.setattr(offload_check, "window_gradient", wrong)
    model.model.remat = "offload"
    with pytest.raises(RuntimeError, match=r"differ by 0.1 of their norm.*checkpointing=True"):
        check_offload(model, batch(), 2)
    assert model.model.remat == "offload"


@pytest.mark.parametrize(
    ("plan", "backend", "tried"),
    [
        ("offload", "gpu", 1),
        ("offload", "cpu", 0),
    ],
)
def test_a_run_tries_it_once_where_there_is_something_to_move(
    model, monkeypatch, plan, backend, tried
) -> None:
    calls = []
    monkeypatch.setattr(loop, "check_offload", lambda *given, part: calls.append(given[2] // part))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model.model.remat = plan
    trainer_of(model, max_steps=2).train()
    assert len(calls) == tried
    assert set(calls) <= {trainer_of(model).batch_size}


def test_the_largest_difference_counts_what_is_not_a_number() -> None:
    one, zero = np.ones(3), np.zeros(3)
    assert largest_difference([one, zero], [one, zero]) == 0
    assert largest_difference([one * 1.5, zero], [one, zero]) == 0.5
    assert largest_difference([zero + 2], [zero]) == pytest.approx(2 * 3**0.5)
    assert not largest_difference([one, zero * np.nan], [one, one]) <= LIMIT
