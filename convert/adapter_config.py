"""adapter_config.json: the 18 keys that old and new PEFT both read, and all that we write.

A 19th, `ensure_weight_tying`, is written only where it is true, since an old PEFT refuses it.

Source: https://github.com/huggingface/peft `tuners/lora/config.py` @ v0.21.2 (key names, neutral
values), `utils/other.py` `get_pattern_key` (how `rank_pattern` is matched).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from convert.errors import broken, shown

# Keys of PEFT without effect on a trained adapter's output, whatever they hold.
_WITHOUT_EFFECT = frozenset(
    {"auto_mapping", "peft_version", "revision", "megatron_core", "qalora_group_size", "eva_config"}
)
# The initialisations that leave the base weights alone; pissa, olora, corda, loftq ... do not.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")
_REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")
_HUGE = 1e30
_LITERAL = re.compile(r"\^?[\w.\-]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA adapter's configuration, as PEFT names it.

    y = x W^T + s (x A^T) B^T, with s = lora_alpha / r, or lora_alpha / sqrt(r) under `use_rslora`.

    Attributes:
      r: Rank R, > 0.
      lora_alpha: Numerator of the scale, dimensionless.
      target_modules: Names or name ends of the adapted modules, or one regular expression.
      base_model_name_or_path: The model that was adapted; None is unknown.
      peft_type: "LORA".
      task_type: "CAUSAL_LM"; None in adapters that were saved without one.
      lora_dropout: Probability on A's input while training, in [0, 1).
      bias: "none", "all" or "lora_only": which base biases were trained.
      modules_to_save: Modules that were trained whole.
      use_rslora: Divide by sqrt(r) instead of r.
      use_dora: The length of each row of W + s B A is trained apart: `lora_magnitude_vector`.
      fan_in_fan_out: False; every weight is [out, in].
      init_lora_weights: How a new adapter would begin: True, False, "gaussian", "orthogonal".
      inference_mode: Whether PEFT freezes the adapter on load.
      layers_to_transform: Layer indices that are adapted; None is all.
      layers_pattern: Name of the list of layers that `layers_to_transform` counts in.
      rank_pattern: Module name or end -> its own rank, where it is not `r`.
      alpha_pattern: Module name or end -> its own alpha.
      ensure_weight_tying: Embedding and head, tied in the base, were trained as the one matrix.

    Raises:
      CheckpointError: a value that PEFT or we cannot serve, named.
    """

    r: int
    lora_alpha: int | float
    target_modules: Sequence[str] | str
    base_model_name_or_path: str | None
    peft_type: str = "LORA"
    task_type: str | None = "CAUSAL_LM"
    lora_dropout: int | float = 0.0
    bias: str = "none"
    modules_to_save: Sequence[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str = True
    inference_mode: bool = True
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
    ensure_weight_tying: bool = False

    def __post_init__(self) -> None:
        for name in _RULES:
            value = getattr(self, name)
            _check_value(name, value)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif isinstance(value, Mapping):
                object.__setattr__(self, name, dict(value))

    def to_json_dict(self) -> dict[str, object]:
        """Return the 18 keys with JSON's types, for `write_json`.

        Returns:
          A new dict; tuples have become lists. `ensure_weight_tying` is in it only if it is true.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.ensure_weight_tying:
            del values["ensure_weight_tying"]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    @classmethod
    def from_json_dict(cls, values: Mapping[str, object]) -> "AdapterConfig":
        """Take what PEFT wrote, of any version: neutral keys are dropped, others refused.

        Args:
          values: The JSON object of adapter_config.json.

        Returns:
          The configuration. "eva" becomes the default initialisation: its effect is in the tensors.
          No `modules_to_save` may stand as null or [], no pattern as null or {}.

        Raises:
          CheckpointError: a key is missing, has a bad value, or would change the maths.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        for key in (key for key in _REQUIRED if key not in values):
            raise broken(
                f"adapter_config.json must have `{key}`",
                got=f"the keys {shown(sorted(values))}",
                wanted="what PEFT's save_pretrained writes for LoRA",
                cure="Check that the file is a PEFT LoRA configuration.",
            )
        for key, value in values.items():
            neutral = value is None or value is False or value in ([], {})
            if key not in names and key not in _WITHOUT_EFFECT and not neutral:
                raise broken(
                    f"`{key}` of adapter_config.json would change the adapter's result",
                    got=shown(value),
                    wanted="null or false: LoRA, rsLoRA, DoRA and modules_to_save are supported",
                    cure="Merge the adapter with PEFT (merge_and_unload) and load the result.",
                )
        ours: dict[str, Any] = {key: value for key, value in values.items() if key in names}
        if ours.get("init_lora_weights") == "eva":
            ours["init_lora_weights"] = True
        for key in ("rank_pattern", "alpha_pattern"):
            ours[key] = {} if ours.get(key) is None else ours[key]
        ours.setdefault("base_model_name_or_path", None)
        if ours.get("modules_to_save") == []:
            ours["modules_to_save"] = None
        for key, value in ours.items():
            _check_value(key, value)
        return cls(**ours)

    def rank_for(self, module: str) -> int | None:
        """Say which rank PEFT gives a module: that of the first pattern that matches, else `r`.

        Args:
          module: Its path in the base model, as `model.layers.0.self_attn.q_proj`.

        Returns:
          The rank; None when a pattern is a regular expression, which we do not run, since a
          hostile one need not end.
        """
        return _first_match(self.rank_pattern, module, self.r)

    def alpha_for(self, module: str) -> int | float | None:
        """Say which alpha PEFT gives a module: that of the first pattern that matches.

        Args:
          module: Its path in the base model.

        Returns:
          The numerator of its scale, `lora_alpha` by default; None as in `rank_for`.
        """
        return _first_match(self.alpha_pattern, module, self.lora_alpha)

    def scale_for(self, module: str, rank: int) -> float | None:
        """Say by how much PEFT multiplies a module's B A.

        Args:
          module: Its path in the base model.
          rank: R > 0, of its tensors.

        Returns:
          alpha / R, or alpha / sqrt(R) with `use_rslora`; None as in `rank_for`.
        """
        alpha = self.alpha_for(module)
        if alpha is None:
            return None
        return alpha / (rank**0.5 if self.use_rslora else rank)


_Value = TypeVar("_Value", int, float)


def _first_match(patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value | None:
    """The value of the first pattern that names a module; None at a regular expression."""
    for pattern, value in patterns.items():
        if not is_literal(pattern):
            return None
        if names_module(pattern, module):
            return value
    return default


def is_literal(pattern: str) -> bool:
    """Say whether a key of `rank_pattern` or `alpha_pattern` is a name, not an expression.

    Args:
      pattern: The key.

    Returns:
      True if `names_module` can match it.
    """
    return _LITERAL.fullmatch(pattern) is not None


def names_module(pattern: str, module: str) -> bool:
    """Say whether a literal name means a module: the whole path, or its end after a dot.

    Args:
      pattern: `q_proj`, `self_attn.q_proj`, or `^model.layers.0.self_attn.q_proj` for the whole.
      module: A module's path.

    Returns:
      True if it does.
    """
    if pattern.startswith("^"):
        return module == pattern[1:]
    return module == pattern or module.endswith(f".{pattern}")


def _check_value(name: str, value: object) -> None:
    """Check one of the values, before a file's value is given out as of its declared type."""
    accepts, wanted = _RULES[name]
    if not accepts(value):
        raise broken(
            f"`{name}` of a LoRA adapter must be one that we can serve",
            got=shown(value),
            wanted=wanted,
            cure="Correct it, or train the adapter again without this option.",
        )


def _is_number(value: object) -> TypeGuard[float]:
    """True for a finite number; comparing, unlike `isfinite`, takes integers of any size."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -_HUGE < value < _HUGE


def _is_names(value: object) -> bool:
    """True for a non-empty list of non-empty strings."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(item, str) and item != "" for item in value)
    )


def _is_pattern(value: object, accepts: Callable[[object], bool]) -> bool:
    """True for a mapping from module names to values that `accepts` takes."""
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and accepts(item) for key, item in value.items()
    )


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_layers(value: object) -> bool:
    """True for None, a layer index or a list of them."""
    items = value if isinstance(value, (list, tuple)) else [0 if value is None else value]
    return all(type(item) is int and item >= 0 for item in items)


_Rule = tuple[Callable[[object], bool], str]
_BOOL: _Rule = (lambda value: type(value) is bool, "true or false")
_NEVER: _Rule = (lambda value: value is False, "false")
_RULES: dict[str, _Rule] = {
    "r": (_is_rank, "an integer > 0"),
    "lora_alpha": (_is_number, "a finite number"),
    "target_modules": (
        lambda value: _is_names(value) or (isinstance(value, str) and value != ""),
        "a list of module names, not empty, or one regular expression; never null",
    ),
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name"),
    "peft_type": (lambda value: value == "LORA", '"LORA"'),
    "task_type": (lambda value: value in (None, "CAUSAL_LM"), '"CAUSAL_LM" or null'),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "in [0, 1)"),
    "bias": (lambda value: value in ("none", "all", "lora_only"), "none, all or lora_only"),
    "modules_to_save": (lambda value: value is None or _is_names(value), "null or module names"),
    "use_rslora": _BOOL,
    "use_dora": _BOOL,
    "fan_in_fan_out": _NEVER,
    "init_lora_weights": (
        lambda value: type(value) in (bool, str) and value in _PLAIN_INITS,
        f"one of {_PLAIN_INITS}: the others change the base weights",
    ),
    "inference_mode": _BOOL,
    "layers_to_transform": (_is_layers, "null, a layer index >= 0 or a list of them"),
    "layers_pattern": (
        lambda value: value is None or isinstance(value, str) or value == [] or _is_names(value),
        "null, a name or a list of names",
    ),
    "rank_pattern": (lambda value: _is_pattern(value, _is_rank), "an object of ranks > 0"),
    "alpha_pattern": (lambda value: _is_pattern(value, _is_number), "an object of numbers"),
    "ensure_weight_tying": _BOOL,
}
