"""The families, by the `model_type` of their config.json."""

from jaxtune.errors import UnsupportedModelError
from jaxtune.models.decoder import CausalLM
from jaxtune.models.gemma import GemmaForCausalLM
from jaxtune.models.gemma2 import Gemma2ForCausalLM
from jaxtune.models.gemma3 import Gemma3ForCausalLM, Gemma3ForConditionalGeneration
from jaxtune.models.llama import LlamaForCausalLM
from jaxtune.models.mistral import MistralForCausalLM
from jaxtune.models.qwen3 import Qwen3ForCausalLM

FAMILIES: dict[str, type[CausalLM]] = {
    family.family: family
    for family in (
        LlamaForCausalLM,
        MistralForCausalLM,
        GemmaForCausalLM,
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        Gemma3ForConditionalGeneration,
        Qwen3ForCausalLM,
    )
}


def find_family(model_type: str | None) -> type[CausalLM]:
    """The class of a `model_type`.

    Raises:
      UnsupportedModelError: No family has that name.
    """
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"`model_type` must be one of {sorted(FAMILIES)}; got {model_type!r}. "
            "See jaxtune/README.md for how to add a family."
        )
    return FAMILIES[model_type]
