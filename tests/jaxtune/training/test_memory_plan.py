"""The plan of a run: chosen where the choice is open and a limit known, checked before step 1."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer
from jaxtune.config import Remat
from jaxtune.data.collate import Place
from jaxtune.data.plan import Request, make_plan
from jaxtune.data.rows import TokenizedRows
from jaxtune.language_model import LanguageModel
from jaxtune.training import memory_plan
from jaxtune.training.footprint import largest
from jaxtune.training.memory_plan import FASTEST_FIRST, free_bytes, longest_batch, settle
from jaxtune.training.resume import start_anew
from tests.packaged import packaged_model_folder

ROWS, LENGTH = 16, 64


def model_of(**options: Any) -> LanguageModel:
    model, _ = FastLanguageModel.from_pretrained(
        str(packaged_model_folder()), max_seq_length=LENGTH, load_in_4bit=False, **options
    )
    return FastLanguageModel.get_peft_model(model, r=2)


def trainer_of(model: LanguageModel, **options: Any) -> SFTTrainer:
    args = SFTConfig(
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        max_steps=1,
        resplit=False,
        report_to="none",
        **options,
    )
    return SFTTrainer(model=model, train_dataset=[{"text": "abc" * LENGTH}] * ROWS, args=args)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Settle a run on a device of so many bytes, by given peaks of the compiler."""

    def settled(
        model: LanguageModel, limit: int, peaks: dict[Remat, int]
    ) -> tuple[str, list[Remat]]:
        tried: list[Remat] = []

        def peak(_: Any, model: LanguageModel, *__: Any) -> int:
            tried.append(model.model.remat)
            return peaks[model.model.remat]

        monkeypatch.setattr(memory_plan, "free_bytes", lambda *_: limit)
        monkeypatch.setattr(memory_plan, "compiled_peak", peak)
        trainer = trainer_of(model)
        tx = trainer._prepare_optimizer(1)
        start = start_anew(model, tx, 0, draws=False)
        given = (model, trainer.args, tx, trainer._plan(), trainer.train_dataset, start)
        return "\n".join(settle(*given).lines), tried

    return settled


@pytest.fixture(scope="module")
def predicted() -> dict[Remat, float]:
    """Bytes of a step by plan, as a run predicts them."""
    trainer = trainer_of(model_of(), disable_tqdm=True)
    tx = trainer._prepare_optimizer(1)
    sizing = memory_plan._sizing(trainer.model, trainer.args, tx, trainer._plan(), 1.0)
    return {plan: sizing.predicted(plan, sizing.rows, sizing.length) for plan in FASTEST_FIRST}


def test_a_plan_that_keeps_less_is_predicted_smaller(predicted) -> None:
    sizes = list(predicted.values())
    assert sizes == sorted(sizes, reverse=True)
    assert len({predicted[plan] for plan in ("none", "gate_up", "attention", "full")}) == 4


def test_the_fastest_plan_that_fits_is_taken(settled, predicted) -> None:
    limit = int(predicted["gate_up"] / memory_plan.USABLE) + 1
    peaks = dict.fromkeys(FASTEST_FIRST, 1)
    model = model_of()
    said, tried = settled(model, limit, peaks)
    assert tried == ["gate_up"]
    assert model.model.remat == "gate_up"
    assert 'with the plan "gate_up"' in said
    assert f"  fits     {ROWS} rows of {LENGTH} tokens at most" in said


def test_a_wrong_prediction_falls_to_the_next(settled, predicted) -> None:
    limit = int(2 * predicted["none"])
    peaks = {**dict.fromkeys(FASTEST_FIRST, 1), "none": limit, "gate_up": limit}
    model = model_of()
    _, tried = settled(model, limit, peaks)
    assert tried == ["none", "gate_up", "attention"]
    assert model.model.remat == "attention"
    # A later run of the same model may choose again.
    _, tried = settled(model, limit, dict.fromkeys(FASTEST_FIRST, 1))
    assert tried == ["none"]


def test_a_plan_of_the_users_is_kept_and_checked(settled, predicted) -> None:
    limit = int(2 * predicted["none"])
    model = model_of(use_gradient_checkpointing=True)
    _, tried = settled(model, limit, dict.fromkeys(FASTEST_FIRST, 1))
    assert tried == ["full"]
    with pytest.raises(ValueError, match=r"use_gradient_checkpointing='none'"):
        settled(model, limit, dict.fromkeys(FASTEST_FIRST, limit))


def test_a_run_that_cannot_fit_ends_before_its_first_step(settled, predicted) -> None:
    limit = int(0.6 * predicted["least"])
    model = model_of()
    with pytest.raises(ValueError, match=r"per_device_train_batch_size=\d+ or max_seq_length=\d+"):
        settled(model, limit, dict.fromkeys(FASTEST_FIRST, limit))


def test_where_no_limit_is_known_nothing_changes(capsys) -> None:
    model = model_of()
    trainer_of(model).train()
    assert model.model.remat == "full"
    assert "memory" not in capsys.readouterr().out


def test_the_compilers_peak_is_of_the_step_that_is_run(monkeypatch, capsys) -> None:
    """Not replaced: a CPU compiles it, and its peak is near the prediction."""
    monkeypatch.setattr(memory_plan, "free_bytes", lambda *_: 2**33)
    found = []
    right = memory_plan.compiled_peak
    monkeypatch.setattr(
        memory_plan, "compiled_peak", lambda *given: found.append(right(*given)) or found[-1]
    )
    model = model_of()
    trainer_of(model).train()
    assert model.model.remat == "none"
    assert f"{found[0] / 2**20:.1f} MiB by the compiler" in capsys.readouterr().out


def test_what_others_hold_is_not_free() -> None:
    own = jax.ShapeDtypeStruct((25,), "float32")
    assert free_bytes({"bytes_limit": 1000, "bytes_in_use": 300}, own) == 800
    assert free_bytes(jax.devices("cpu")[0].memory_stats(), own) is None


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 100])
def test_the_largest_number(limit: int) -> None:
    assert largest(lambda n: n <= limit) == limit
    assert largest(lambda n: n <= limit, 5) == min(limit, 5)


def test_what_is_compiled_first_is_the_longest_window() -> None:
    lengths = [3, 70, 140, 300, 20, 9, 110, 64]
    rows = TokenizedRows(rows=[np.ones(length, np.int32) for length in lengths])
    request = Request(batch_size=2, accumulation=1, max_length=512, seed=0, resplit=False)
    layout = make_plan(np.array(lengths), request)
    found = {window.batch.input_ids.shape for window in layout.windows(rows, Place())}
    assert len(found) > 1
    assert longest_batch(layout, rows).input_ids.shape == max(found)
