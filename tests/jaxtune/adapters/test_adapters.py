"""LoRA as peft has it: identity at first, the same counts, any adapter read back."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx
from transformers import AutoConfig

from convert import read_adapter
from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.targets import PROJECTIONS, select_modules
from jaxtune.api import FastLanguageModel
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.language_model import with_verbs
from jaxtune.models.build import build
from jaxtune.models.registry import find_family
from tests.families import VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import Oracle, make_oracle, random_rows
from tests.tolerances import relative_error, tolerance


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return make_oracle(VARIANTS[0], tmp_path_factory.mktemp("adapters"), initializer_range=0.3)


def test_a_new_adapter_changes_nothing(oracle: Oracle) -> None:
    base = load_base(oracle.folder)
    rows = random_rows((2, 11)).astype(np.int32)
    before = np.asarray(base(rows))
    model = FastLanguageModel.get_peft_model(base, r=4)
    np.testing.assert_array_equal(np.asarray(model(rows)), before)
    assert np.abs(model.model.layers.mlp.up_proj.lora_A[...]).max() > 0


def test_the_first_a_is_uniform_as_in_peft_and_follows_the_seed(oracle: Oracle) -> None:
    def first(seed: int) -> np.ndarray:
        base = load_base(oracle.folder)
        model = FastLanguageModel.get_peft_model(base, r=16, random_state=seed)
        return np.asarray(model.model.layers.mlp.gate_proj.lora_A[...])

    a = first(1)
    bound = 1 / np.sqrt(32)
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    np.testing.assert_array_equal(a, first(1))
    assert not np.array_equal(a, first(2))


@pytest.mark.parametrize("targets", [list(PROJECTIONS), ["q_proj", "down_proj"], ["mlp.up_proj"]])
def test_counts_are_those_that_peft_prints(
    oracle: Oracle, targets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    settings = peft.LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM")
    printed = io.StringIO()
    with redirect_stdout(printed):
        peft.get_peft_model(base, settings).print_trainable_parameters()
    capsys.readouterr()
    model = FastLanguageModel.get_peft_model(load_base(oracle.folder), r=3, target_modules=targets)
    model.print_trainable_parameters()
    assert capsys.readouterr().out == printed.getvalue()


@pytest.mark.parity
def test_an_adapter_with_patterns_and_missing_layers_gives_pefts_logits(
    oracle: Oracle, tmp_path: Path
) -> None:
    """Ranks and alphas that differ by layer are zero-padded stacks; absent layers have rank 0."""
    base = transformers.AutoModelForCausalLM.from_pretrained(oracle.folder)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        layers_to_transform=[0, 2],
        rank_pattern={"layers.2.mlp.down_proj": 7, "q_proj": 2},
        alpha_pattern={"layers.2.mlp.down_proj": 3},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(base, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    theirs.peft_config["default"].base_model_name_or_path = str(oracle.folder)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapted(tmp_path / "theirs")
    assert ours.model.layers.mlp.down_proj.lora.ranks == (4, 0, 7)
    rows = random_rows((2, 11))
    with torch.no_grad():
        expected = theirs.double()(input_ids=torch.tensor(rows)).logits.numpy()
    assert relative_error(ours(rows.astype(np.int32)), expected) <= tolerance("float32", "logits")
    # Written back, it is the same adapter: no padding row leaves the stacks.
    ours.save_pretrained(tmp_path / "ours")
    before, after = read_adapter(tmp_path / "theirs"), read_adapter(tmp_path / "ours")
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], tensor)


def test_padding_rows_stay_zero_under_training(oracle: Oracle) -> None:
    import optax

    from jaxtune.data.batch import Batch
    from jaxtune.layers.linear import LoraSpec
    from jaxtune.training.step import make_train_step, merge, split

    model = load_base(oracle.folder)
    spec = LoraSpec(ranks=(3, 0, 1), scales=(1.0, 0.0, 2.0), dropout=0.0)
    inject_lora(model, {"mlp.up_proj": spec, "self_attn.q_proj": spec}, seed=0)
    graphdef, trainable, frozen = split(model)
    tx = optax.adamw(1e-1, weight_decay=0.1)
    step = make_train_step(graphdef, tx, max_grad_norm=1.0)
    rows = random_rows((2, 9)).astype(np.int32)
    batch = Batch(input_ids=rows, labels=rows, layout="causal")
    opt_state = tx.init(trainable)
    for _ in range(3):
        trainable, opt_state, _ = step(trainable, opt_state, frozen, batch)
    up = merge(graphdef, trainable, frozen).model.layers.mlp.up_proj
    a, b = np.asarray(up.lora_A[...]), np.asarray(up.lora_B[...])
    assert np.abs(b[0]).min() > 0
    for layer, rank in enumerate(spec.ranks):
        assert not a[layer, rank:].any()
        assert not b[layer, :, rank:].any()


def test_targets_follow_pefts_name_rule(oracle: Oracle) -> None:
    model = load_base(oracle.folder)
    everywhere = [f"model.layers.{layer}.mlp.up_proj" for layer in range(3)]
    assert select_modules(model, ["up_proj"]) == everywhere
    assert select_modules(model, ["mlp.up_proj"]) == everywhere
    assert select_modules(model, ["layers.1.mlp.up_proj"]) == everywhere[1:2]
    assert len(select_modules(model, "all-linear")) == 3 * len(PROJECTIONS)
    for wrong in (["proj"], ["q_proj", "nothing"], []):
        with pytest.raises(ValueError, match="`target_modules` must be a list of projections"):
            select_modules(model, wrong)
    with pytest.raises(ValueError, match="matches none of 21"):
        select_modules(model, "q_proj")
    with pytest.raises(ValueError, match="must be a regular expression"):
        select_modules(model, "(")
    with pytest.raises(ValueError, match="matches `lm_head` too"):
        select_modules(model, r".*(up_proj|lm_head)")
    for layers in ([3], [], [-1], 7):
        with pytest.raises(ValueError, match="layer indices from 0 to 2"):
            select_modules(model, ["q_proj"], layers_to_transform=layers)
    with pytest.raises(ValueError, match="goes with a list"):
        select_modules(model, ".*q_proj", layers_to_transform=[0])
    with pytest.raises(ValueError, match="needs `layers_to_transform`"):
        select_modules(model, ["q_proj"], layers_pattern="layers")
    with pytest.raises(ValueError, match="must name the model's list of layers"):
        select_modules(model, ["q_proj"], layers_to_transform=[0], layers_pattern="blocks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "`r` of a LoRA adapter"),
        ({"lora_dropout": 1.0}, "`lora_dropout` of a LoRA adapter"),
        ({"bias": "some"}, "`bias` of a LoRA adapter"),
        ({"modules_to_save": ["nothing"]}, "`modules_to_save` must name modules"),
        ({"modules_to_save": ["0.mlp.up_proj"]}, "in every layer or in none"),
        ({"rank_pattern": {"nothing": 2}}, "`rank_pattern` must be a name or regular expression"),
        ({"alpha_pattern": {"nothing": 2}}, "`alpha_pattern` must be a name or regular"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]}, "at least one projection"),
        ({"init_lora_weights": "pissa"}, "`init_lora_weights`"),
        ({"init_lora_weights": "orthogonal"}, r"not\s+built yet"),
        ({"finetune_last_n_layers": 4}, "`finetune_last_n_layers` must be 1 to 3"),
        ({"max_seq_length": 1000}, "`max_seq_length` of get_peft_model must be <= 128"),
    ],
)
def test_a_wrong_option_is_refused_and_changes_nothing(
    oracle: Oracle, options: dict[str, Any], message: str
) -> None:
    model = load_base(oracle.folder)
    before = nnx.graphdef(model)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        FastLanguageModel.get_peft_model(model, **options)
    assert nnx.graphdef(model) == before
    assert model.carried.adapter is None


def test_biases_beside_layers_without_an_adapter_are_refused_and_change_nothing() -> None:
    biased = next(v for v in VARIANTS if v.name == "llama-biases-linear-rope")
    family = find_family("llama")
    config = family.config_from_hf(AutoConfig.for_model("llama", **biased.options).to_dict())
    model = build(with_verbs(family), config, "abstract")
    before = nnx.graphdef(model)
    with pytest.raises(NotImplementedError, match="bias='all' beside layers that are not adapted"):
        FastLanguageModel.get_peft_model(model, layers_to_transform=[0], bias="all")
    assert nnx.graphdef(model) == before


def test_the_last_layers_can_be_adapted(oracle: Oracle) -> None:
    model = FastLanguageModel.get_peft_model(load_base(oracle.folder), finetune_last_n_layers=2)
    assert model.model.layers.mlp.up_proj.lora.ranks == (0, 16, 16)
    assert model.carried.adapter.layers_to_transform == (1, 2)
    assert "q_proj" in model.carried.adapter.target_modules


def test_the_other_initialisations(oracle: Oracle) -> None:
    def parts(init: bool | str) -> tuple[np.ndarray, np.ndarray]:
        base = load_base(oracle.folder)
        model = FastLanguageModel.get_peft_model(base, r=16, init_lora_weights=init)
        projection = model.model.layers.mlp.gate_proj
        return np.asarray(projection.lora_A[...]), np.asarray(projection.lora_B[...])

    a, b = parts("gaussian")
    assert a.std() == pytest.approx(1 / 16, rel=0.1)
    assert not b.any()
    a, b = parts(False)  # torch's own initialisation of a linear layer, on both sides
    assert np.abs(a).max() <= 1 / np.sqrt(32)
    assert np.abs(b).max() <= 1 / np.sqrt(16)
    assert b.std() == pytest.approx(1 / np.sqrt(16) / np.sqrt(3), rel=0.1)


def test_a_second_adapter_is_refused_and_the_same_one_accepted(oracle: Oracle) -> None:
    model = FastLanguageModel.get_peft_model(load_base(oracle.folder), r=4)
    assert FastLanguageModel.get_peft_model(model, r=4) is model
    with pytest.raises(TypeError, match="one adapter"):
        FastLanguageModel.get_peft_model(model, r=8)


def test_rslora_divides_by_the_root(oracle: Oracle) -> None:
    model = FastLanguageModel.get_peft_model(
        load_base(oracle.folder), r=16, lora_alpha=8, use_rslora=True
    )
    assert model.model.layers.mlp.up_proj.lora.scales == (2.0, 2.0, 2.0)


def test_an_adapter_for_another_model_is_refused(
    oracle: Oracle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_oracle(VARIANTS[2], tmp_path_factory.mktemp("other"), initializer_range=0.3)
    model = load_base(other.folder)
    from jaxtune.adapters.attach import attach_adapter

    with pytest.raises(IncompatibleCheckpointError, match=r"must be A \[r, "):
        attach_adapter(model, read_adapter(oracle.adapter_folder))


def test_saving_without_an_adapter_is_refused(oracle: Oracle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there must be an adapter to save"):
        load_base(oracle.folder).save_pretrained(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
