"""A LoraConfig as arguments: defaults, what is passed on, and what is refused by name."""

import dataclasses
import inspect
from typing import Any

import peft
import pytest
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TARGETS

from jaxtune.adapters.targets import PROJECTIONS
from jaxtune.api import FastLanguageModel
from jaxtune.errors import NotBuiltYetError
from jaxtune.models.registry import FAMILIES
from jaxtune.training.peft_config import _ALWAYS, _NO_MATHS, _OPTIONAL, lora_arguments

FIELDS = {field.name for field in dataclasses.fields(peft.LoraConfig)}
TAKEN = {*_ALWAYS, *_OPTIONAL}
TELLING = {
    "r": 4,
    "target_modules": ["k_proj"],
    "lora_alpha": 5,
    "lora_dropout": 0.1,
    "bias": "lora_only",
    "use_rslora": True,
    "init_lora_weights": "gaussian",
    "layers_to_transform": [1],
    "layers_pattern": "layers",
    "modules_to_save": ["lm_head"],
    "rank_pattern": {"k_proj": 2},
    "alpha_pattern": {"k_proj": 3},
    "use_dora": True,
    "ensure_weight_tying": True,
}


@pytest.mark.parity
def test_defaults_are_pefts() -> None:
    theirs = peft.LoraConfig()
    for name, default in (_ALWAYS | _OPTIONAL).items():
        assert getattr(theirs, name) == default, name
    assert lora_arguments(theirs) == lora_arguments({})


@pytest.mark.parity
def test_default_targets_are_pefts_for_every_family() -> None:
    named = [model_type for model_type in FAMILIES if model_type in TARGETS]
    assert named
    for model_type in named:
        assert lora_arguments({})["target_modules"] == TARGETS[model_type]


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_what_is_set_is_passed_on(name: str) -> None:
    value = TELLING[name]
    config = peft.LoraConfig()
    setattr(config, name, value)
    for given in ({name: value}, config):
        assert lora_arguments(given)[name] == value


def test_what_says_nothing_is_left_to_get_peft_model() -> None:
    """Both have the same default there, but for what both take None for: no patterns."""
    parameters = inspect.signature(FastLanguageModel.get_peft_model).parameters
    assert set(lora_arguments(peft.LoraConfig())) == set(_ALWAYS)
    assert set(parameters) >= TAKEN
    for name, default in _OPTIONAL.items():
        assert parameters[name].default == (default or None if default == {} else default)


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(FIELDS - TAKEN - _NO_MATHS))
def test_every_other_field_of_peft_is_refused_where_it_is_set(name: str) -> None:
    config: Any = peft.LoraConfig()
    lora_arguments(config)  # not set: fine
    setattr(config, name, True)
    with pytest.raises(NotBuiltYetError, match=rf"got {name}, which .* it takes r, target_modules"):
        lora_arguments(config)


@pytest.mark.parity
def test_every_name_is_a_field_of_peft() -> None:
    assert TAKEN | _NO_MATHS <= FIELDS


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(NotBuiltYetError, match="got lora_alhpa"):
        lora_arguments({"lora_alhpa": 16})


def test_targets_are_in_an_order_of_their_own() -> None:
    config = peft.LoraConfig(target_modules=list(PROJECTIONS))
    assert isinstance(config.target_modules, set)
    assert lora_arguments(config)["target_modules"] == sorted(PROJECTIONS)
    assert lora_arguments({"target_modules": "all-linear"})["target_modules"] == "all-linear"


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_a_branch_on_the_embedding_or_head_is_refused(name: str) -> None:
    """get_peft_model would train it whole, which is not what peft does with this list."""
    with pytest.raises(NotBuiltYetError, match=rf"got \['{name}'\].*modules_to_save"):
        lora_arguments({"target_modules": ["q_proj", name]})


@pytest.mark.parametrize(
    "wrong", [peft.PromptTuningConfig(), peft.LoraConfig(task_type="SEQ_CLS")], ids=["kind", "task"]
)
def test_another_kind_of_adapter_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="a LoRA of a causal language model; got '"):
        lora_arguments(wrong)


@pytest.mark.parametrize("wrong", ["lora", 16, peft.LoraConfig])
def test_what_is_no_configuration_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be a peft LoraConfig or a dict of its fields"):
        lora_arguments(wrong)
