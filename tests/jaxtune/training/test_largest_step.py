"""The largest step is compiled before the first, and said."""

from pathlib import Path

import numpy as np
import pytest

from jaxtune import SFTConfig, SFTTrainer
from jaxtune.data.collate import Place
from jaxtune.data.plan import Request, make_plan
from jaxtune.data.rows import TokenizedRows
from jaxtune.language_model import LanguageModel
from jaxtune.training import loop
from jaxtune.training.largest_step import largest_window
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted
from tests.oracles import make_oracle
from tests.words import word_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    model = adapted(make_oracle(VARIANTS[0], tmp_path, initializer_range=0.3))
    model.carried.tokenizer = word_tokenizer()
    return model


def rows_of(lengths: list[int]) -> TokenizedRows:
    return TokenizedRows(rows=[np.ones(length, np.int32) for length in lengths])


def request(**options: object) -> Request:
    sizes = {"batch_size": 2, "accumulation": 1, "max_length": 512, "seed": 0, "resplit": False}
    return Request(**(sizes | options))


def test_it_has_the_largest_shape_that_a_window_has() -> None:
    rows = rows_of([3, 70, 140, 300, 20, 9, 110, 64])
    plan = make_plan(np.array([len(row) for row in rows.rows]), request())
    found = {window.batch.input_ids.shape for window in plan.windows(rows, Place())}
    assert len(found) > 1
    largest = largest_window(plan, rows)
    assert largest is not None
    assert largest.batch.input_ids.shape == max(found)


@pytest.mark.parametrize("options", [{"packing": "bfd"}, {"resplit": True, "padding_free": True}])
def test_layouts_of_one_shape_have_none(options: dict[str, object]) -> None:
    rows = rows_of([3, 70, 140, 300])
    assert largest_window(make_plan(np.array([3, 70, 140, 300]), request(**options)), rows) is None


def test_it_is_compiled_before_the_first_step(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop.jax, "default_backend", lambda: "gpu")
    rows = [{"input_ids": [1] * length} for length in (5, 70, 20, 8)]
    args = SFTConfig(
        max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=1, resplit=False
    )
    SFTTrainer(model, args, train_dataset=rows).train()
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "the largest step" in line)
    assert line.startswith("jaxtune: the largest step, 1 x 128 tokens, is compiled")
