"""The real configurations, without memory: names and shapes of Hugging Face's own modules."""

import torch
import transformers
from flax import nnx

from jaxtune.adapters.counting import count_parameters
from jaxtune.api import FastLanguageModel
from jaxtune.language_model import with_verbs
from jaxtune.models.build import build
from jaxtune.models.configuration import read_hf_config
from jaxtune.models.naming import tensor_names
from jaxtune.models.registry import find_family

EVERYTHING = {"r": 128, "modules_to_save": ["embed_tokens", "lm_head"]}
PUBLISHED = {
    "Meta-Llama-3-8B": ({"r": 16}, 41_943_040),
    "Llama-3.2-1B": ({"r": 16}, 11_272_192),
    "Llama-3.2-3B": ({"r": 16}, 24_313_856),
    "Mistral-7B-v0.1": ({"r": 16}, 41_943_040),
    "Mistral-7B-v0.3": (EVERYTHING, 603_979_776),
    "gemma-7b": ({"r": 16}, 50_003_968),
    "gemma-2-2b": ({"r": 16}, 20_766_720),
    "gemma-2-9b": ({"r": 16}, 54_018_048),
}


def test_names_shapes_and_published_counts(assets):
    seen = 0
    for folder in sorted(path for path in (assets / "configs").iterdir() if path.is_dir()):
        hf = read_hf_config(folder)
        family = with_verbs(find_family(hf["model_type"]))
        config = family.config_from_hf(hf)
        model = build(family, config, "abstract")
        ours = {
            name: leaf.get_value().shape[0 if layer is None else 1 :]
            for path, leaf in nnx.to_flat_state(nnx.state(model))
            for layer, name in tensor_names(path, config.num_hidden_layers)
        }
        with torch.device("meta"):
            theirs = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(folder)
            )
        assert ours == {name: tuple(p.shape) for name, p in theirs.named_parameters()}, folder.name
        options, trainable = PUBLISHED.get(folder.name, ({"r": 16}, None))
        FastLanguageModel.get_peft_model(model, **options)
        assert count_parameters(model)[0] == (trainable or count_parameters(model)[0]), folder.name
        seen += 1
    assert seen == 18
