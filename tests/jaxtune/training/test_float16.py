"""Training in float16: the losses of float32, steps that overflow, what is wider inside."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import FastLanguageModel, SFTConfig, SFTTrainer, TrainerCallback
from jaxtune.optim import loss_scale
from jaxtune.training.step import split
from tests.packaged import packaged_model_folder
from tests.stories_losses import tuned
from tests.tolerances import relative_error, tolerance


def trainer_in(dtype: str, **options: float) -> SFTTrainer:
    """Eight rows on the packaged model."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(packaged_model_folder()), max_seq_length=64, dtype=dtype, load_in_4bit=False
    )
    FastLanguageModel.get_peft_model(model, r=4)
    rows = [{"text": f"{n} and {n + 1} make {2 * n + 1}, not {n}."} for n in range(8)]
    given = {"max_steps": 6, "learning_rate": 5e-3, "warmup_steps": 0, "optim": "adamw_torch"}
    args = SFTConfig(**{**given, "disable_tqdm": True, **options})
    return SFTTrainer(model, args, tokenizer=tokenizer, train_dataset=rows)


def records(trainer: SFTTrainer) -> list[dict[str, float]]:
    trainer.train()
    return trainer.state.log_history[:-1]


def test_losses_are_those_of_float32() -> None:
    half, single = (records(trainer_in(dtype)) for dtype in ("float16", "float32"))
    losses = [[record["loss"] for record in run] for run in (half, single)]
    assert losses[1][-1] < 0.7 * losses[1][0]
    assert relative_error(*losses) <= tolerance("float16", "run_loss")
    norms = [[record["grad_norm"] for record in run] for run in (half, single)]
    assert relative_error(*norms) <= tolerance("float16", "run_grad_norm")
    assert [record["loss_scale"] for record in half] == [2.0**16] * 6
    assert "loss_scale" not in single[0]


@pytest.mark.slow
def test_a_hundred_steps_of_stories_are_those_of_float32(assets: Path) -> None:
    half, single = (tuned(assets, dtype=dtype)[1] for dtype in ("float16", "float32"))
    assert len(half) == 100
    assert relative_error(half, single) <= tolerance("float16", "run_loss_100_steps")


def test_steps_that_overflow_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**21)
    trainer = trainer_in("float16")
    before = jax.tree.map(np.asarray, split(trainer.model)[1])
    unchanged: list[bool] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            now = split(kwargs["model"])[1]
            same = jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), now, before)
            unchanged.append(all(jax.tree.leaves(same)))

    trainer.callback_handler.callbacks.append(Watch())
    found = records(trainer)
    left_out = [not np.isfinite(record["grad_norm"]) for record in found]
    assert left_out[0]
    assert not left_out[-1]
    assert unchanged == left_out  # parameters, step by step; the first overflows come together
    scales = [2.0**21 * 0.5 ** min(n + 1, sum(left_out)) for n in range(6)]
    assert [record["loss_scale"] for record in found] == scales
    assert all(np.isfinite(record["loss"]) for record in found)
    rates = [record["learning_rate"] for record in found]
    # The schedule stands still meanwhile: 5e-3 (1 - n / 6) after n steps that were made.
    made = np.cumsum([0, *(not out for out in left_out)])[:6]
    np.testing.assert_allclose(rates, 5e-3 * (1 - made / 6), rtol=1e-6)


def carry_dtypes(dtype: str) -> set[str]:
    """Of what the layers hand on, as the jaxpr of the decoder says it."""
    model = trainer_in(dtype).model
    jaxpr = jax.make_jaxpr(lambda ids: model.model(ids)[0])(jnp.zeros((1, 8), jnp.int32))
    scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert str(jaxpr.out_avals[0].dtype) == dtype
    return {str(scan.outvars[0].aval.dtype) for scan in scans}


@pytest.mark.parametrize(
    ("dtype", "stream"),
    [("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")],
)
def test_the_residual_stream_is_float32_in_float16_alone(dtype: str, stream: str) -> None:
    assert carry_dtypes(dtype) == {stream}
