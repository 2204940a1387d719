"""A peft `LoraConfig`, or a dict of its fields, as arguments of `get_peft_model`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtune.errors import NotBuiltYetError

# PEFT's defaults of what `get_peft_model` has other defaults for.
_ALWAYS = {
    "r": 8,
    "target_modules": None,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_rslora": False,
}
# PEFT's defaults of what both leave out by default; passed on only where they say something.
_OPTIONAL = {
    "init_lora_weights": True,
    "layers_to_transform": None,
    "layers_pattern": None,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_dora": False,
    "ensure_weight_tying": False,
}
# What describes an adapter or belongs to a field that is refused; no part of the maths.
_NO_MATHS = frozenset(
    {
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    }
)
# `get_peft_model` trains these whole where a list names them, as Unsloth does; peft does not.
_NO_BRANCH = ("embed_tokens", "lm_head")
# PEFT's choice for every family here (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`).
_DEFAULT_TARGETS = ["q_proj", "v_proj"]


def lora_arguments(peft_config: Any) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.get_peft_model` that make the adapter peft would make.

    A field that is not given has PEFT's default (r=8, lora_alpha=8, the projections q and v).

    Args:
      peft_config: A peft `LoraConfig` (read by field name; peft is not imported) or a mapping of
        its fields.

    Returns:
      Names and values.

    Raises:
      TypeError: It is neither.
      NotBuiltYetError: It sets a field whose maths is not computed here.
      ValueError: It is not a LoRA of a causal language model.
    """
    given = _fields(peft_config)
    _check_kind(given)
    known = {*_ALWAYS, *_OPTIONAL, *_NO_MATHS}
    refused = sorted(name for name, value in given.items() if name not in known and value)
    if refused:
        raise NotBuiltYetError(
            f"`peft_config` must hold fields of a plain LoRA; got {', '.join(refused)}, which "
            f"this version does not compute. Leave them out; it takes "
            f"{', '.join([*_ALWAYS, *_OPTIONAL])}."
        )
    arguments = {name: given.get(name, default) for name, default in _ALWAYS.items()}
    for name, default in _OPTIONAL.items():
        value = given.get(name, default)
        if value != default and value is not None:
            arguments[name] = value
    arguments["target_modules"] = _targets(arguments["target_modules"])
    return arguments


def _fields(peft_config: Any) -> dict[str, Any]:
    if isinstance(peft_config, Mapping):
        return dict(peft_config)
    if not dataclasses.is_dataclass(peft_config) or isinstance(peft_config, type):
        raise TypeError(
            "`peft_config` must be a peft LoraConfig or a dict of its fields; got "
            f"{type(peft_config).__name__}. Pass for example "
            "peft_config={'r': 16, 'lora_alpha': 16}."
        )
    return {
        field.name: getattr(peft_config, field.name) for field in dataclasses.fields(peft_config)
    }


def _check_kind(given: Mapping[str, Any]) -> None:
    for name, wanted in (("peft_type", "LORA"), ("task_type", "CAUSAL_LM")):
        got = given.get(name)
        got = getattr(got, "value", got)  # peft's are enumerations
        if got not in (None, wanted):
            raise ValueError(
                f"`peft_config` must be of {name} {wanted!r}, a LoRA of a causal language model; "
                f"got {got!r}. Pass a LoraConfig with task_type='CAUSAL_LM'."
            )


def _targets(targets: Any) -> Any:
    """None is PEFT's default; peft holds a list as a set, whose order is not its own."""
    if targets is None:
        return _DEFAULT_TARGETS
    if isinstance(targets, str):
        return targets
    whole = sorted(name for name in targets if name.rsplit(".", 1)[-1] in _NO_BRANCH)
    if whole:
        raise NotBuiltYetError(
            f"`target_modules` of a LoraConfig must be projections of the layers; got {whole}, "
            "and a LoRA branch on them is not built yet. Train them whole: modules_to_save."
        )
    return sorted(targets) if isinstance(targets, (set, frozenset)) else list(targets)
