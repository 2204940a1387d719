"""Plans and libraries train alike: curves of one start, over the same rows in one order."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxtune.layers.host_memory import in_host_memory
from tests.families import VARIANTS
from tests.jaxtune.bench.tiny import TINY
from tests.jaxtune.training.runs import adapted, records_of, trainer_of
from tests.oracles import make_oracle
from tests.perf.loss_curves import ALLOWED, Run, draw, gap, ours, prepare, theirs
from tests.tolerances import tolerance
from tests.words import ragged_rows, word_tokenizer

STEPS = 50


def test_fifty_steps_of_every_extreme_are_those_of_float32(tmp_path: Path) -> None:
    """The plan that keeps all, the one that keeps least, and full recomputation in plain JAX."""
    oracle = make_oracle(VARIANTS[0], tmp_path, initializer_range=0.3)
    losses = {}
    for plan in ("none", "least", "full"):
        model = adapted(oracle)
        model.model.remat, model.carried.auto_plan = plan, None
        model.model.kernels = "xla" if plan == "full" else "auto"
        # A length that the pieces of the MLP divide.
        trainer = trainer_of(model, max_steps=STEPS, max_length=16, learning_rate=5e-3)
        trainer.train()
        weight = model.model.embed_tokens.weight.get_value()
        assert in_host_memory(weight) == (plan == "least")
        losses[plan] = np.array([record["loss"] for record in records_of(trainer)])
    assert losses["full"].shape == (STEPS,)
    assert losses["full"][-5:].mean() < losses["full"][:5].mean()
    for plan in ("none", "least"):
        error = np.abs(losses[plan] / losses["full"] - 1).max()
        assert error <= tolerance("float32", "plan_50_losses"), plan


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
def test_both_sides_of_the_script_agree_on_a_tiny_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    word_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = ragged_rows(24)
    run = Run(folder=tmp_path, rows=rows, steps=4, length=32, dtype="float32")
    prepare(run, str(tmp_path), tmp_path / "tokenizer", rank=4)
    losses = {"ours": ours(run), "theirs": theirs(run)}
    assert len(losses["ours"]) == 4
    np.testing.assert_allclose(
        losses["ours"], losses["theirs"], rtol=tolerance("float32", "trl_20_losses")
    )
    assert gap(losses) <= ALLOWED
    draw(losses, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").stat().st_size > 0


def test_the_gap_is_that_of_the_last_losses() -> None:
    assert gap({"ours": [9.0] + [2.02] * 20, "theirs": [1.0] + [2.0] * 20}) == pytest.approx(0.01)
