"""What transformers' `generate` takes besides: what changes nothing, and what to do instead."""

from typing import Any

INSTEAD = {
    "inputs": "Pass input_ids.",
    "max_length": "Pass max_new_tokens, which counts new tokens alone.",
    "generation_config": "Pass its values by name; those of generation_config.json are read.",
    "num_beams": "There is no beam search: leave it out.",
    "min_new_tokens": "Nothing forces a length: leave it out.",
    "no_repeat_ngram_size": "Pass repetition_penalty.",
    "typical_p": "Pass top_p or min_p.",
    "stopping_criteria": "Pass eos_token_id or stop_strings.",
    "token_type_ids": "The models here have none: pass input_ids and attention_mask alone.",
    "stop": "Pass stop_strings.",
    "logits_processor": "Pass temperature, top_k, top_p, min_p or repetition_penalty.",
    "return_dict_in_generate": "The tokens alone are returned: leave it out.",
}

# Values that ask for what is done anyway.
NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "max_length": (None,),
    "generation_config": (None,),
    "num_beams": (1, None),
    "num_beam_groups": (1, None),
    "length_penalty": (1.0, None),
    "early_stopping": (False, None),
    "min_new_tokens": (0, None),
    "min_length": (0, None),
    "no_repeat_ngram_size": (0, None),
    "typical_p": (1.0, None),
    "stopping_criteria": (None,),
    "logits_processor": (None,),
    "return_dict_in_generate": (False, None),
    "output_scores": (False, None),
    "output_logits": (False, None),
    "output_attentions": (False, None),
    "output_hidden_states": (False, None),
    "synced_gpus": (False, None),
}
