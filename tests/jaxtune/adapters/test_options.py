"""Each option of `get_peft_model` against peft: what is trained, its gradients, both directions."""

import copy
import dataclasses
import functools
import io
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from flax import nnx

from jaxtune.adapters.peft_form import peft_names
from jaxtune.api import FastLanguageModel
from jaxtune.data.batch import Batch
from jaxtune.language_model import LanguageModel
from jaxtune.training.step import merge, split, token_losses
from tests.families import BY_NAME, VARIANTS
from tests.loaded import load_adapted, load_base
from tests.oracles import TEXT_PROJECTIONS, Oracle, make_oracle, random_rows
from tests.tolerances import relative_error, tolerance

pytestmark = [
    pytest.mark.parity,
    # peft warns of tied models, of patterns and of what it will not merge: not ours to judge.
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
ROWS = random_rows((2, 9))


@dataclasses.dataclass(frozen=True)
class Case:
    """Options that are peft's and ours.

    Attributes:
      variant: Of `tests.families`.
      options: Of `LoraConfig` and of `get_peft_model`.
      theirs: More of `LoraConfig`'s, where peft must be told what is our only way.
    """

    variant: str
    options: dict[str, Any]
    theirs: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "bias-all": Case("llama-biases-linear-rope", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias-lora-only": Case(
        "llama-biases-linear-rope", {"target_modules": ["q_proj", "down_proj"], "bias": "lora_only"}
    ),
    "whole-untied": Case(
        "llama-untied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "whole-tied": Case(
        "llama-tied-llama3-rope",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"ensure_weight_tying": True},
    ),
    "whole-norms": Case(
        "gemma2-even-no-caps", {"target_modules": ["v_proj"], "modules_to_save": ["norm"]}
    ),
    "rslora-patterns": Case(
        "llama-untied",
        {
            "target_modules": ["q_proj", "up_proj"],
            "use_rslora": True,
            "rank_pattern": {"q_proj": 2, r"layers\.[12]\.mlp\.up_proj": 5},
            "alpha_pattern": {"up_proj": 3, "model.layers.0.self_attn.q_proj": 8},
        },
    ),
    "regex": Case(
        "llama-untied", {"target_modules": r".*layers\.[02]\.(mlp\.up|self_attn\.k)_proj"}
    ),
    "layers": Case(
        "llama-untied",
        {
            "target_modules": ["o_proj", "gate_proj"],
            "layers_to_transform": [0, 2],
            "layers_pattern": "layers",
        },
    ),
    "dora-patterns": Case(
        "llama-biases-linear-rope",
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"],
            "layers_to_transform": [0, 2],
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {r"layers\.2\.mlp\.down_proj": 7},
        },
    ),
    "dora-bias-whole": Case(
        "llama-biases-linear-rope",
        {
            "target_modules": ["q_proj", "k_proj", "v_proj", "up_proj"],
            "use_dora": True,
            "bias": "lora_only",
            "modules_to_save": ["norm"],
        },
    ),
    "all-linear": Case("llama-untied", {"target_modules": "all-linear"}),
    "multimodal": Case("gemma3-multimodal", {"target_modules": TEXT_PROJECTIONS}),
}


@functools.cache
def base_of(variant: str, folder: Path) -> Oracle:
    return make_oracle(VARIANTS[BY_NAME[variant]], folder / variant, initializer_range=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def peft_model(case: Case, base: Path) -> peft.PeftModel:
    """peft's model with every trained tensor away from where it starts."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, task_type="CAUSAL_LM", **copy.deepcopy(case.options), **case.theirs
    )
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    return wrapped.eval()


def their_names(model: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
    """The trained parameters under the names of peft's files."""
    return {
        name.replace(".modules_to_save.default", "")
        .replace(".default", "")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def adapted(case: Case, base: Path) -> LanguageModel:
    return FastLanguageModel.get_peft_model(
        load_base(base), r=4, lora_alpha=6, **copy.deepcopy(case.options)
    )


def test_what_is_trained_is_what_peft_trains(case: Case, folder: Path, capsys: Any) -> None:
    base = base_of(case.variant, folder).folder
    theirs = peft_model(case, base)
    ours = adapted(case, base)
    named = peft_names(nnx.state(ours, nnx.Param))
    shapes = {name: tuple(parameter.shape) for name, parameter in their_names(theirs).items()}
    if case.theirs:  # one matrix under both names; peft's parameters list it once
        shapes["base_model.model.lm_head.weight"] = shapes[
            "base_model.model.model.embed_tokens.weight"
        ]
    assert {name: tensor.shape for name, tensor in named.items()} == shapes
    if not case.theirs and case.variant != "gemma3-multimodal":  # peft counts its vision part
        printed = io.StringIO()
        with redirect_stdout(printed):
            theirs.print_trainable_parameters()
        capsys.readouterr()
        ours.print_trainable_parameters()
        assert capsys.readouterr().out == printed.getvalue()


def test_a_new_adapter_changes_nothing(case: Case, folder: Path) -> None:
    base = base_of(case.variant, folder).folder
    rows = ROWS.astype(np.int32)
    model = adapted(case, base)
    before, after = model(rows, adapters=False), model(rows)
    if case.options.get("use_dora"):  # the first magnitudes and the norms are two computations
        assert relative_error(after, before) <= tolerance("float32", "logits")
    else:
        np.testing.assert_array_equal(after, before)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(graphdef, trainable, frozen, batch):
    def loss(trainable):
        model = merge(graphdef, trainable, frozen)
        hidden, _ = model.model(batch.input_ids)
        return token_losses(model, hidden, batch)[0], model.logits(hidden)

    return jax.value_and_grad(loss, has_aux=True)(trainable)


def test_pefts_adapter_gives_its_logits_and_gradients_here(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    theirs = peft_model(case, base_of(case.variant, folder).folder)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapted(tmp_path / "theirs")
    ours.model.remat = "none"
    theirs = theirs.double()
    logits = theirs(input_ids=torch.tensor(ROWS)).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.tensor(ROWS[:, 1:]).flatten(), reduction="sum"
    ).backward()
    rows = ROWS.astype(np.int32)
    batch = Batch(input_ids=rows, labels=rows, layout="causal")
    (_, actual), gradient = value_and_gradient(*split(ours), batch)
    expected = logits.detach().numpy()
    assert relative_error(actual, expected) <= tolerance("float32", "logits")
    named = peft_names(gradient)
    for name, parameter in their_names(theirs).items():
        error = relative_error(named[name], parameter.grad.numpy())
        assert error <= tolerance("float32", "lora_gradient"), name


def test_our_adapter_gives_its_logits_in_peft(case: Case, folder: Path, tmp_path: Path) -> None:
    base = base_of(case.variant, folder).folder
    ours = adapted(case, base)
    draw = np.random.default_rng(5)
    for _, leaf in nnx.to_flat_state(nnx.state(ours, nnx.Param)):
        held = leaf.get_value()
        noise = 0.1 * draw.normal(size=held.shape).astype(np.float32)
        ranks = leaf.get_metadata().get("ranks")
        if ranks is not None:  # rows over a layer's rank stay zero
            rank_axis = 1 if held.shape[1] == max(ranks) else 2
            mask = np.arange(max(ranks))[None] < np.asarray(ranks)[:, None]
            if held.ndim == 2:  # DoRA's magnitudes, whose rows are counted likewise
                noise *= mask
            else:
                noise *= mask[:, :, None] if rank_axis == 1 else mask[:, None, :]
        leaf.set_value(held + noise)
    ours.save_pretrained(tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "ours").double().eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ROWS)).logits.numpy()
    actual = np.asarray(ours(ROWS.astype(np.int32)))
    assert relative_error(actual, expected) <= tolerance("float32", "logits")
    again = load_adapted(tmp_path / "ours")
    np.testing.assert_array_equal(again(ROWS.astype(np.int32)), actual)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_pefts_two_copies_of_a_tied_model_are_kept(
    saved: list[str], folder: Path, tmp_path: Path
) -> None:
    """Without `ensure_weight_tying` peft trains embedding and head apart; both come back."""
    options = {"target_modules": ["q_proj"], "modules_to_save": saved}
    case = Case("llama-tied-llama3-rope", options)
    theirs = peft_model(case, base_of(case.variant, folder).folder)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapted(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs.double()(input_ids=torch.tensor(ROWS)).logits.numpy()
    actual = np.asarray(ours(ROWS.astype(np.int32)))
    assert relative_error(actual, expected) <= tolerance("float32", "logits")
    assert not ours.config.tie_word_embeddings
