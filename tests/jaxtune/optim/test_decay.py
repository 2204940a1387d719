"""Weight decay's two groups, against those of transformers' trainer."""

import jax
import jax.numpy as jnp
import peft
import pytest
import torch
import transformers
from flax import nnx

from jaxtune.adapters.peft_form import peft_names
from jaxtune.adapters.targets import PROJECTIONS
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import with_verbs
from jaxtune.models.build import build
from jaxtune.models.naming import tensor_names
from jaxtune.models.registry import find_family
from jaxtune.optim.decay import decay_mask
from tests.families import VARIANTS

# Gemma 2 has four norms a layer, the other one biases.
CHOSEN = [v for v in VARIANTS if v.name in ("llama-biases-linear-rope", "gemma2-even-no-caps")]


def model_of(variant, weights="abstract"):
    family = with_verbs(find_family(variant.model_type))
    hf = transformers.AutoConfig.for_model(variant.model_type, **variant.options)
    return build(family, family.config_from_hf(hf.to_dict()), weights), hf


def their_groups(hf, lora=None):
    """{name: decays} over the parameters that a transformers trainer would train."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(hf)
        if lora is not None:
            model = peft.get_peft_model(model, lora)
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    return {n: n in decayed for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parity
@pytest.mark.parametrize("variant", CHOSEN, ids=lambda variant: variant.name)
def test_groups_of_full_fine_tuning_are_those_of_transformers(variant):
    model, hf = model_of(variant)
    trainable = nnx.state(model, nnx.Param)
    mask = decay_mask(trainable)
    groups = {
        name: leaf.get_value()
        for path, leaf in nnx.to_flat_state(mask)
        for _, name in tensor_names(path, model.config.num_hidden_layers)
    }
    assert groups == their_groups(hf)
    assert set(groups.values()) == {True, False}


@pytest.mark.parity
def test_groups_of_an_adapter_with_all_that_it_may_train_are_those_of_transformers():
    """A and B, DoRA's magnitudes, biases, and modules trained whole."""
    model, hf = model_of(CHOSEN[0], "random")
    options = {"target_modules": list(PROJECTIONS), "bias": "all", "modules_to_save": ["lm_head"]}
    options["use_dora"] = True
    FastLanguageModel.get_peft_model(model, r=2, **options)
    trainable = nnx.state(model, nnx.Param)
    groups = jax.tree.map(
        lambda leaf, decays: jnp.full(leaf.shape, decays), trainable, decay_mask(trainable)
    )
    theirs = their_groups(hf, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    theirs = {
        name.replace(".default", "")
        .replace(".modules_to_save", "")
        .replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): decays
        for name, decays in theirs.items()
    }
    assert {name: bool(held.all()) for name, held in peft_names(groups).items()} == theirs
    assert set(theirs.values()) == {True, False}


@pytest.mark.parametrize(
    ("name", "decays"),
    [
        ("model.norm.weight", False),
        ("model.layers.self_attn.q_norm.weight", False),
        ("model.layers.self_attn.q_proj.bias", False),
        ("model.embed_tokens.weight", True),
        ("model.normal.weight", True),
        ("lm_head.weight", True),
    ],
)
def test_a_leaf_is_judged_by_its_name(name, decays):
    assert decay_mask({name: 1.0}) == {name: decays}
