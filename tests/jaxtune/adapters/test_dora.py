"""DoRA beyond `test_options.py`: dropout, 4-bit bases, optimizers, merged models."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
from flax import nnx

from convert import CheckpointError, merge_adapter, read_adapter, write_adapter
from jaxtune.adapters.modules import projections
from jaxtune.api import FastLanguageModel
from jaxtune.data.batch import Batch
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.layers.linear import Linear, LoraSpec, _dropped, project
from jaxtune.optim.registry import create_optimizer
from jaxtune.saving import save_merged
from jaxtune.training.step import make_train_step, merge, split
from tests.families import BY_NAME, VARIANTS
from tests.jaxtune.layers.test_project import context
from tests.loaded import load_adapted, load_base
from tests.oracles import ALL_PROJECTIONS, Oracle, make_oracle, random_rows
from tests.quantized_models import dequantized, load, save_4bit, save_dense
from tests.tolerances import relative_error, tolerance

pytestmark = pytest.mark.parity
ROWS = random_rows((2, 9))
LENGTHS = "lora_magnitude_vector"


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    variant = VARIANTS[BY_NAME["llama-untied"]]
    return make_oracle(variant, tmp_path_factory.mktemp("dora"), initializer_range=0.3)


def moved(model: torch.nn.Module, **options: object) -> peft.PeftModel:
    """peft's DoRA over a model, every trained tensor away from where it starts."""
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", use_dora=True, **options)
    wrapped = peft.get_peft_model(model, config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return wrapped


class Mask(torch.nn.Module):
    """Dropout that multiplies by a given mask."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.mask = torch.tensor(mask, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


def test_dropout_is_pefts() -> None:
    """On the input of the whole adapted weight, of which only the branch is LoRA's."""
    base = torch.nn.Sequential(torch.nn.Linear(24, 16)).double()
    theirs = peft.get_peft_model(
        base, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], use_dora=True)
    ).double()
    layer = theirs.base_model.model[0]
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    held = {name.replace(".default", ""): p for name, p in layer.named_parameters()}
    value = {name: jnp.asarray(p.detach().numpy(), jnp.float32) for name, p in held.items()}
    ours = Linear(24, 16, layers=None, bias=True, std=0.1, dtype=jnp.float32, rngs=nnx.Rngs(0))
    ours.weight.set_value(value["base_layer.weight"])
    ours.bias.set_value(value["base_layer.bias"])
    ours.lora = LoraSpec(ranks=(3,) * 3, scales=(2.0,) * 3, dropout=0.5, use_dora=True)
    ours.lora_A = nnx.LoRAParam(value["lora_A.weight"])
    ours.lora_B = nnx.LoRAParam(value["lora_B.weight"])
    ours.lora_magnitude_vector = nnx.LoRAParam(value[f"{LENGTHS}.weight"])
    where = context(key=jax.random.key(3))
    x = jax.random.normal(jax.random.key(7), (2, 9, 24))
    mask = np.asarray(_dropped(ours.lora, jnp.ones_like(x), where, 4))
    assert 0 < (mask == 0).sum() < mask.size
    layer.lora_dropout["default"] = Mask(mask)
    expected = theirs.train()(torch.tensor(np.asarray(x, np.float64)))
    expected.square().sum().backward()
    graphdef, state = nnx.split(ours)

    def total(state: nnx.State) -> tuple[jax.Array, jax.Array]:
        (y,) = project((nnx.merge(graphdef, state),), x, where, 4)
        return jnp.sum(y**2), y

    gradient, actual = jax.grad(total, has_aux=True)(state)
    assert relative_error(actual, expected.detach().numpy()) <= tolerance("float32", "logits")
    for name in ("lora_A", "lora_B", LENGTHS):
        wanted = held[f"{name}.weight"].grad.numpy()
        error = relative_error(gradient[name].get_value(), wanted)
        assert error <= tolerance("float32", "lora_gradient"), name


def test_over_4_bits_the_adapter_is_pefts(tmp_path: Path) -> None:
    dense = save_dense(tmp_path / "dense", layers=2)
    base = save_4bit(dense, tmp_path / "base", dtype=torch.bfloat16, bnb_4bit_quant_type="nf4")
    theirs = moved(dequantized(base), target_modules=ALL_PROJECTIONS)
    theirs.peft_config["default"].base_model_name_or_path = str(base)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = theirs.double()(input_ids=torch.tensor(ROWS)).logits.detach().numpy()
    ours = load(tmp_path / "theirs")
    assert relative_error(ours(ROWS.astype(np.int32)), expected) <= tolerance("float32", "logits")
    fresh = FastLanguageModel.get_peft_model(load(base), r=4, use_dora=True)
    begun = peft.get_peft_model(
        dequantized(base), peft.LoraConfig(r=4, use_dora=True, target_modules=ALL_PROJECTIONS)
    )
    name = f"model.layers.1.mlp.up_proj.{LENGTHS}.default.weight"
    wanted = begun.base_model.model.get_parameter(name).detach().numpy()
    held = projections(fresh)["mlp.up_proj"].lora_magnitude_vector[...][1]
    assert relative_error(held, wanted) <= tolerance("float32", "lora_forward")


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "adafactor", "lion_8bit", "sgd"])
def test_magnitudes_train_and_absent_layers_stay_zero(oracle: Oracle, optim: str) -> None:
    model = FastLanguageModel.get_peft_model(
        load_base(oracle.folder),
        r=4,
        target_modules=["q_proj", "up_proj"],
        layers_to_transform=[0, 2],
        use_dora=True,
    )
    graphdef, trainable, frozen = split(model)
    before = np.asarray(projections(model)["mlp.up_proj"].lora_magnitude_vector[...])
    tx = create_optimizer(optim, optax.constant_schedule(1e-2), weight_decay=0.1)
    step, state = make_train_step(graphdef, tx), tx.init(trainable)
    rows = ROWS.astype(np.int32)
    for _ in range(2):
        batch = Batch(input_ids=rows, labels=rows, layout="causal")
        trainable, state, _ = step(trainable, state, frozen, batch)
    up = projections(merge(graphdef, trainable, frozen))["mlp.up_proj"]
    after = np.asarray(up.lora_magnitude_vector[...])
    assert (after[[0, 2]] != before[[0, 2]]).mean() > 0.9
    assert not after[1].any()


def test_a_merged_model_is_that_of_peft(oracle: Oracle, tmp_path: Path) -> None:
    """Ours by jaxtune and by convert, against `merge_and_unload` in float64."""
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    theirs = moved(base, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    theirs.peft_config["default"].base_model_name_or_path = str(oracle.folder)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_adapted(tmp_path / "adapter")
    save_merged(ours, tmp_path / "ours", dtype=np.dtype(np.float32))
    merge_adapter(
        oracle.folder, tmp_path / "adapter", tmp_path / "plain", dtype=np.dtype(np.float32)
    )
    wanted = theirs.double().merge_and_unload().state_dict()
    for folder in ("ours", "plain"):
        got = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / folder).state_dict()
        for name, tensor in wanted.items():
            error = relative_error(got[name].numpy(), tensor.numpy())
            assert error <= tolerance("float32", "lora_forward"), name


def test_magnitudes_that_do_not_fit_are_refused(oracle: Oracle, tmp_path: Path) -> None:
    model = FastLanguageModel.get_peft_model(
        load_base(oracle.folder), r=2, target_modules=["q_proj"], use_dora=True
    )
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.config.use_dora
    name = next(name for name in adapter.tensors if name.endswith(LENGTHS))
    for value, message in ((np.ones(3, np.float32), "with magnitudes"), (None, "magnitudes None")):
        tensors = {**adapter.tensors, name: value}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        with pytest.raises(CheckpointError, match=message):
            write_adapter(tmp_path / "new", tensors, adapter.config)
    wide = {
        name: np.ones((40, *tensor.shape[1:]), np.float32) if "lora_A" not in name else tensor
        for name, tensor in adapter.tensors.items()
    }
    write_adapter(tmp_path / "wide", wide, adapter.config)
    with pytest.raises(
        IncompatibleCheckpointError, match=r"magnitudes of .* must be \[32\]; got \(40,\)"
    ):
        load_adapted(tmp_path / "wide")
