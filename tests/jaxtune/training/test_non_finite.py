"""A loss that is not finite ends the run, says where it comes from, and leaves a finite model."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtune import SFTTrainer, TrainerCallback
from jaxtune.data.order import epoch_order
from jaxtune.errors import NonFiniteLossError
from jaxtune.training.checkpoint import checkpoints
from jaxtune.training.non_finite import last_gradient
from jaxtune.training.step import split
from tests.families import VARIANTS
from tests.jaxtune.training.runs import adapted, records_of, trainer_of
from tests.oracles import Oracle, make_oracle
from tests.words import ragged_rows


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("nan"), initializer_range=0.3)


def set_to(variable: Any, where: Any, value: float) -> None:
    variable.set_value(variable.get_value().at[where].set(value))


def failing_at_step_3(oracle: Oracle, **options: Any) -> SFTTrainer:
    """A word's embedding is infinite, and only the fifth row that is seen has that word."""
    model = adapted(oracle)
    rows = [{"text": "w1 w2 w3 w4"}] * 8
    trainer = trainer_of(model, train_dataset=rows, gradient_accumulation_steps=1, **options)
    fifth = int(epoch_order(8, trainer.args.seed, 0)[4])
    word = trainer.tokenizer.convert_tokens_to_ids("w20")
    trainer.train_dataset.rows[fifth][1] = word
    set_to(model.model.embed_tokens.weight, word, np.inf)
    return trainer


class StopAfter(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.steps


def trained(trainer: SFTTrainer) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(split(trainer.model)[1])]


def test_the_model_is_left_at_the_last_finite_step(oracle: Oracle, tmp_path: Path) -> None:
    message = (
        r"got loss nan.* in step 3 at learning rate 0\.02\..*"
        r"The first that is not finite is the embedding\. "
        r"The model is as it was after step 2, and saved in checkpoint-2\."
    )
    trainer = failing_at_step_3(oracle, output_dir=tmp_path)
    with pytest.raises(NonFiniteLossError, match=message) as caught:
        trainer.train()
    assert caught.value.step == 3
    assert trainer.state.global_step == 2
    assert len(records_of(trainer)) == 2
    short = trainer_of(
        adapted(oracle),
        train_dataset=[{"text": "w1 w2 w3 w4"}] * 8,
        gradient_accumulation_steps=1,
    )
    short.callback_handler.callbacks.append(StopAfter(2))
    short.train()
    for found, expected in zip(trained(trainer), trained(short), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-2" / "resume.json").exists()  # weights alone


def test_nothing_is_saved_where_nothing_is_to_be(oracle: Oracle) -> None:
    with pytest.raises(NonFiniteLossError, match=r"as it was after step 2\.$"):
        failing_at_step_3(oracle).train()


def broken(oracle: Oracle, part: str) -> SFTTrainer:
    trainer = trainer_of(adapted(oracle), max_steps=2)
    model = trainer.model
    layers = model.model.layers
    spoil = {
        "layer": (layers.mlp.up_proj.weight, (1, 0, 0)),
        "norm": (model.model.norm.weight, 0),
        "head": (model.lm_head.weight, (0, 0)),
        "parameter": (layers.self_attn.q_proj.lora_A, (1, 0, 0)),
    }
    set_to(*spoil[part], np.nan)
    return trainer


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("layer", r"the output of layer 1 \(of 0 to \d+\)"),
        ("norm", "the final norm"),
        ("head", "the output head"),
        ("parameter", r"the parameter model\.layers\.self_attn\.q_proj\.lora_A"),
    ],
)
def test_the_first_part_that_is_not_finite_is_named(oracle: Oracle, part: str, said: str) -> None:
    with pytest.raises(NonFiniteLossError, match=rf"not finite is {said}\. The model .* step 0\."):
        broken(oracle, part).train()


def test_the_backward_pass_is_named_by_the_layer_that_it_begins_at() -> None:
    finite = {
        "model.layers.mlp.up_proj.lora_A": jnp.array([False, True, True]),
        "model.layers.self_attn.q_proj.lora_B": jnp.array([False, False, True]),
    }
    said = "the gradient of model.layers.self_attn.q_proj.lora_B in layer 1"
    assert last_gradient(finite) == said
    assert last_gradient({"lm_head.weight": jnp.array([False, True])}) == (
        "the gradient of lm_head.weight"
    )
    assert last_gradient({"model.layers.mlp.up_proj.lora_A": jnp.ones(3, bool)}) is None


def test_packed_and_re_split_rows_are_searched_too(oracle: Oracle) -> None:
    for options in ({"packing": True}, {"padding_free": True}):
        trainer = trainer_of(adapted(oracle), max_steps=1, train_dataset=ragged_rows(13), **options)
        set_to(trainer.model.model.layers.mlp.up_proj.weight, (0, 0, 0), np.nan)
        with pytest.raises(NonFiniteLossError, match="the output of layer 0"):
            trainer.train()
