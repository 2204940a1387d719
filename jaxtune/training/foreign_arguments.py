"""Options of trl and transformers, read field by field."""

import dataclasses
import enum
from typing import Any

from jaxtune.training.config import SFTConfig, UnslothTrainingArguments
from jaxtune.training.script_arguments import ScriptArguments, shown

# Fields that those libraries fill in themselves, and that say nothing which the others do not.
DERIVED = {
    "_n_gpu",
    "accelerator_config",
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "dataloader_pin_memory",  # off on a CPU
    "debug",
    "do_eval",
    "fsdp_config",
    "greater_is_better",
    "include_num_input_tokens_seen",
    "local_rank",
    "logging_dir",
    "metric_for_best_model",
    "pad_to_multiple_of",
    "run_name",
    "torch_compile_backend",
}
# Off, whatever the default: how one version or another writes it.
_OFF = (None, False, "", "no", [], {})


def is_foreign(args: Any) -> bool:
    """Whether these are options of trl or transformers, or a class that looks like theirs."""
    dataclass = dataclasses.is_dataclass(args) and not isinstance(args, type)
    return dataclass and hasattr(args, "per_device_train_batch_size")


def read_arguments(args: Any) -> SFTConfig:
    """The same options as an `SFTConfig`.

    A field that `SFTConfig` has is taken over with its value, so that the defaults of the other
    library hold too. Two of those are no requests: trl's `max_length` of 1024, in whose place the
    model's `max_seq_length` holds, as under Unsloth; and the fields of `ScriptArguments`.

    Args:
      args: A dataclass instance such as `trl.SFTConfig` or `transformers.TrainingArguments`.

    Returns:
      An `SFTConfig`; an `UnslothTrainingArguments` where there is an `embedding_learning_rate`.

    Raises:
      ValueError: A field that nothing here serves is not at its default, or a value is refused.
    """
    given = {field.name: _plain(getattr(args, field.name)) for field in dataclasses.fields(args)}
    # A class of Unsloth's keeps these outside the fields.
    for name in ("embedding_learning_rate", "q_galore_config"):
        if getattr(args, name, None) is not None:
            given[name] = getattr(args, name)
    unsloths = given.keys() & {"embedding_learning_rate", "q_galore_config"}
    kind = UnslothTrainingArguments if unsloths else SFTConfig
    defaults = {field.name: _default(field) for field in dataclasses.fields(args)}
    known = {field.name for field in dataclasses.fields(kind)}
    idle = {field.name for field in dataclasses.fields(ScriptArguments)} | {"max_length"}
    taken = {}
    for name, value in given.items():
        off = name in DERIVED or any(value == neutral for neutral in (defaults.get(name), *_OFF))
        if name in known:
            if not (off and name in idle):
                taken[name] = value
        elif not off:
            raise ValueError(
                f"`{name}` of {type(args).__module__}.{type(args).__qualname__} must be "
                f"{defaults[name]!r}, its default, since nothing here serves it; got "
                f"{shown(name, value)}. Leave it out."
            )
    return kind(**_one_warmup(taken))


def _one_warmup(taken: dict[str, Any]) -> dict[str, Any]:
    """Steps come before a ratio, and a ratio of 0 is none, as in transformers 4."""
    if taken.get("warmup_steps") or not taken.get("warmup_ratio"):
        taken.pop("warmup_ratio", None)
    return taken


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else _plain(field.default)
