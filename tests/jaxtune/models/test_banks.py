"""A dynamic 4-bit checkpoint, some layers dense: logits, gradients by each plan, program size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

pytest.importorskip("bitsandbytes")

from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import projections
from jaxtune.adapters.peft_form import peft_names
from jaxtune.config import Remat
from jaxtune.data.batch import Batch
from jaxtune.language_model import LanguageModel
from jaxtune.layers.linear import LoraSpec
from jaxtune.layers.variables import Frozen
from jaxtune.models.build import build, freeze
from jaxtune.training.step import merge, split, token_losses
from pallas_kernels import NF4
from pallas_kernels.nf4 import Bank
from tests.oracles import EMBEDDING, Oracle, oracle_gradients, oracle_logits, random_rows
from tests.quantized_models import LEFT_DENSE, dynamic_oracle, load, projection
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity
ROWS = random_rows((2, 11))
BATCH = Batch(input_ids=ROWS.astype(np.int32), labels=ROWS.astype(np.int32), layout="causal")
MIXED = {name.split(".", 3)[3] for name in LEFT_DENSE}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return dynamic_oracle(tmp_path_factory.mktemp("dynamic"))


@pytest.fixture(scope="module")
def model(oracle: Oracle) -> LanguageModel:
    return load(oracle.adapter_folder)


@pytest.fixture(scope="module")
def dense(oracle: Oracle) -> LanguageModel:
    return load(oracle.adapter_folder, load_in_4bit=False)


@functools.partial(jax.jit, static_argnums=0)
def gradient(graphdef, trainable, frozen, batch):
    def value(trainable):
        model = merge(graphdef, trainable, frozen)
        hidden, _ = model.model(batch.input_ids)
        return token_losses(model, hidden, batch)[0], model.logits(hidden)

    return jax.value_and_grad(value, has_aux=True)(trainable)


def evaluated(
    model: LanguageModel, remat: Remat
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """Loss, logits and gradients by PEFT's names."""
    model.model.remat = remat
    (total, logits), slopes = gradient(*split(model), BATCH)
    named = {name: np.asarray(value) for name, value in peft_names(slopes).items()}
    return float(total), np.asarray(logits), named


@pytest.fixture(scope="module")
def ours(model: LanguageModel) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    with jax.default_matmul_precision("highest"):
        return evaluated(model, "none")


def test_a_projection_is_a_bank_where_its_layers_differ(model: LanguageModel) -> None:
    kinds = {path: type(projection(model, path)) for path in projections(model)}
    assert {path for path, kind in kinds.items() if kind is Bank} == MIXED
    assert {kind for path, kind in kinds.items() if path not in MIXED} == {NF4}
    down = projection(model, "mlp.down_proj")
    assert down.kinds == (False, True, True, False, True, True, True, False)
    assert down.slots == (0, 0, 1, 1, 2, 3, 4, 2)
    assert down.shape == (8, 40, 428)


def test_logits_loss_and_lora_gradients_are_the_oracles(oracle: Oracle, ours) -> None:
    total, logits, gradients = ours
    assert relative_error(logits, oracle_logits(oracle, ROWS)) <= tolerance("float32", "logits")
    expected_loss, expected = oracle_gradients(oracle, ROWS, ROWS)
    expected.pop(EMBEDDING)
    assert relative_error(total, expected_loss) <= tolerance("float32", "loss")
    assert gradients.keys() == expected.keys()
    errors = [relative_error(gradients[name], expected[name]) for name in expected]
    assert max(errors) <= tolerance("float32", "lora_gradient")


@pytest.mark.slow
def test_plans_and_dense_weights_give_the_same_gradients(
    model: LanguageModel, dense: LanguageModel, ours
) -> None:
    plans: tuple[Remat, ...] = ("full", "offload")
    others = [evaluated(model, remat) for remat in plans] + [evaluated(dense, "none")]
    for total, logits, gradients in others:
        assert relative_error(total, ours[0]) <= tolerance("float32", "window_loss")
        assert relative_error(logits, ours[1]) <= tolerance("float32", "logits")
        errors = [relative_error(gradients[name], ours[2][name]) for name in ours[2]]
        assert max(errors) <= tolerance("float32", "window_gradient")


def test_dequantised_the_model_is_dense_and_says_so(
    oracle: Oracle, model: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = load(oracle.adapter_folder, load_in_4bit=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "4-bit" in line]
    assert lines == [f"jaxtune: the 4-bit weights of {oracle.folder} are dequantised."]
    weights = oracle.model.get_base_model().state_dict()
    for path in projections(model):
        stack = projection(dense, path)
        assert isinstance(stack, jax.Array)
        for layer in range(8):
            expected = weights[f"model.layers.{layer}.{path}.base_layer.weight"]
            np.testing.assert_array_equal(stack[layer], expected.to(torch.float32).numpy())


def mixed(like: LanguageModel, layers: int) -> LanguageModel:
    """A model without weights, of any depth, with every third layer's projections dense."""
    config = dataclasses.replace(like.config, num_hidden_layers=layers)
    model = build(type(like), config, "abstract", bits=4)
    freeze(model)
    kinds = tuple(layer % 3 > 0 for layer in range(layers))
    slots = tuple(kinds[:layer].count(kind) for layer, kind in enumerate(kinds))

    def bank(stack: NF4) -> Bank:
        some = jax.tree.map(lambda a: a[: sum(kinds)] if a.shape[0] == layers else a, stack)
        dense = jnp.zeros((layers - sum(kinds), *stack.matrix))
        return Bank(dense=dense, quantized=some, kinds=kinds, slots=slots)

    for linear in projections(model).values():
        linear.weight = Frozen(jax.eval_shape(bank, linear.weight.get_value()))
    spec = LoraSpec(ranks=(2,) * layers, scales=(1.0,) * layers, dropout=0.0)
    inject_lora(model, dict.fromkeys(projections(model), spec), seed=0)
    return model


def test_the_program_does_not_grow_with_depth(model: LanguageModel) -> None:
    programs = [gradient.lower(*split(mixed(model, layers)), BATCH) for layers in (7, 15)]
    sizes = [len(program.as_text()) for program in programs]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
