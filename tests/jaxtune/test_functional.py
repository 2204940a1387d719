"""A model in the hands of a JAX script: the README's loop, and JAX's and nnx's own transforms."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from convert import read_adapter
from jaxtune import FastLanguageModel, functional
from jaxtune.language_model import LanguageModel
from jaxtune.models import decoder
from tests.base_install import write_model
from tests.tolerances import relative_error, tolerance

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("functional")
    write_model(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> LanguageModel:
    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=32, load_in_4bit=False)
    return FastLanguageModel.get_peft_model(model, r=2)


def windows(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = np.random.default_rng(0).integers(3, 32, (8, 12)).astype(np.int32)
    return [(rows, rows)] * count


def test_the_readmes_loop_trains_saves_and_generates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block as it stands; the folder that it names holds a tiny model."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    (loop,) = [block for block in blocks if "make_train_step" in block]
    (name,) = re.findall(r'"(\w+/[\w.-]+)"', loop)
    (tmp_path / name).mkdir(parents=True)
    write_model(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(compile(loop, "README.md", "exec"), made)  # noqa: S102  it is what readers run
    *lines, generated = capsys.readouterr().out.splitlines()
    records = [line for line in lines if line.startswith("step ")]
    losses = [float(re.findall(r"loss ([\d.]+)", record)[0]) for record in records]
    assert losses[-1] < 0.9 * losses[0]
    assert "rate 0.0e+00" in records[0]
    assert generated.startswith("['")
    saved = read_adapter(tmp_path / "lora")
    for tensor, value in functional.peft_names(made["trainable"]).items():
        np.testing.assert_array_equal(saved.tensors[tensor], value)


def test_split_and_merge_keep_what_the_model_carries(model: LanguageModel) -> None:
    again = functional.merge(*functional.split(model))
    assert type(again) is type(model)
    assert again.carried is model.carried
    assert again.print_trainable_parameters.__func__ is model.print_trainable_parameters.__func__


def test_the_transforms_of_jax_and_nnx_agree(model: LanguageModel) -> None:
    rows = windows(1)[0][0][:2]

    def mean_square(model: LanguageModel) -> jax.Array:
        return jnp.mean(model(rows) ** 2)

    graphdef, trainable, frozen = functional.split(model)
    by_jax = jax.jit(jax.grad(lambda t: mean_square(functional.merge(graphdef, t, frozen))))
    wrt = nnx.DiffState(0, nnx.LoRAParam)
    by_nnx = nnx.jit(nnx.grad(mean_square, argnums=wrt))
    expected, actual = by_jax(trainable), by_nnx(model)
    errors = jax.tree.map(relative_error, nnx.to_pure_dict(actual), nnx.to_pure_dict(expected))
    assert max(jax.tree.leaves(errors)) <= tolerance("float32", "window_gradient")
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0


def test_another_model_of_the_same_shape_compiles_nothing(
    model: LanguageModel, folder: Path
) -> None:
    """Tokenizer and origin ride on the model, and must not make it another program."""
    rows = windows(1)[0][0][:2]
    model(rows)
    compiled = decoder._logits._cache_size()
    other, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=16, load_in_4bit=False)
    other = FastLanguageModel.get_peft_model(other, r=2, random_state=1)
    assert other.carried is not model.carried
    assert other.carried.max_seq_length != model.carried.max_seq_length
    other(rows)
    assert decoder._logits._cache_size() == compiled


def test_loss_is_a_sum_and_a_count(model: LanguageModel) -> None:
    rows = windows(1)[0][0]
    batch = functional.Batch(input_ids=rows, labels=rows, layout="causal")
    graphdef, trainable, frozen = functional.split(model)
    total, count = functional.loss(graphdef, trainable, frozen, batch)
    log_p = jax.nn.log_softmax(model(rows)[:, :-1])
    picked = np.take_along_axis(np.asarray(log_p), rows[:, 1:, None], axis=-1)
    assert int(count) == rows[:, 1:].size
    assert float(total) == pytest.approx(-picked.sum(), rel=tolerance("float32", "loss"))
