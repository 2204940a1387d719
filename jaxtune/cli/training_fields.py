"""Every option of a training run as tyro takes it: the fields of the dataclass, in named groups."""

import dataclasses
import json
import os
import re
import typing
from collections.abc import Mapping
from inspect import cleandoc
from typing import Annotated, Any

import tyro

from jaxtune.training.config import UnslothTrainingArguments
from jaxtune.training.control_options import ControlOptions
from jaxtune.training.script_arguments import ScriptArguments

DEFAULT_OUTPUT = "outputs"
# Titles in the help, with the fields that come first in each; what no row names is in `MORE`.
GROUPS = {
    "rows": (
        "dataset_text_field", "max_length", "max_seq_length", "packing", "packing_strategy",
        "padding_free", "resplit", "completion_only_loss", "assistant_only_loss",
        "dataset_num_proc", "train_sampling_strategy", "group_by_length", "dataloader_drop_last",
    ),
    "steps": (
        "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
        "max_steps", "mesh", "seed",
    ),
    "optimizer": (
        "learning_rate", "embedding_learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs",
        "warmup_steps", "warmup_ratio", "optim", "weight_decay", "adam_beta1", "adam_beta2",
        "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha",
    ),
    "saving": (
        "output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model",
    ),
    "reporting": (
        "logging_steps", "logging_strategy", "logging_first_step", "report_to", "run_name",
        "logging_dir", "disable_tqdm",
    ),
    "evaluation": tuple(
        field.name
        for field in dataclasses.fields(ControlOptions)
        if re.search("eval|best|better|prediction", field.name)
    ),
}  # fmt: skip
MORE = "other"
# Options that the program treats otherwise than Python: type, word, explanation, show the default.
OWN: dict[str, tuple[Any, str, str, bool]] = {
    "output_dir": (str, "FOLDER", "Folder of the adapter, of checkpoints and of loss.png", True),
    "max_length": (
        int | None,
        "N",
        "Longest row in tokens; by default 2048, or the model's range if that is shorter",
        False,
    ),
}
# What files written for PyTorch's trainers hold, at the values where that is right.
IDLE = (*(field.name for field in dataclasses.fields(ScriptArguments)), "q_galore_config")
_ENTRY = re.compile(r"^  (\w+): (.*?)(?=^  \w+: |^\S|\Z)", re.M | re.S)


def explanations(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each attribute.

    Args:
      kind: The class.

    Returns:
      {name: text on one line}.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, attributes = cleandoc(base.__doc__ or "").partition("Attributes:\n")
        found |= {name: " ".join(text.split()) for name, text in _ENTRY.findall(attributes)}
    return found


def grouped() -> dict[str, list[str]]:
    """The options that do something by the title of their group, in the order of the help."""
    fields = [field.name for field in dataclasses.fields(UnslothTrainingArguments)]
    placed = {name for names in GROUPS.values() for name in names} | set(IDLE)
    groups = {title: list(names) for title, names in GROUPS.items()}
    return {**groups, MORE: [name for name in fields if name not in placed]}


def registry() -> tyro.constructors.ConstructorRegistry:
    """The rules of tyro, with one for `UnslothTrainingArguments`."""
    made = tyro.constructors.ConstructorRegistry()
    made.struct_rule(_rule)
    return made


def _rule(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """Take the options apart into groups; None for another type."""
    if info.type is not UnslothTrainingArguments:
        return None
    fields = {field.name: field for field in dataclasses.fields(UnslothTrainingArguments)}
    hints = typing.get_type_hints(UnslothTrainingArguments)
    texts = explanations(UnslothTrainingArguments)
    groups = []
    for title, names in grouped().items():
        members = [
            (name, _shown(name, hints[name], texts[name]), _default(fields[name])) for name in names
        ]
        kind = dataclasses.make_dataclass(title, members, frozen=True, kw_only=True)
        groups.append(
            tyro.constructors.StructFieldSpec(name=title, type=kind, default=kind(), helptext=None)
        )
    foreign: Any = Annotated[Mapping[str, Any], _JSON, tyro.conf.arg(help=_FOREIGN)]
    groups.append(tyro.constructors.StructFieldSpec(name=FOREIGN, type=foreign, default={}))
    return tyro.constructors.StructConstructorSpec(instantiate=_joined, fields=tuple(groups))


def _joined(script_arguments: Mapping[str, Any], **groups: Any) -> UnslothTrainingArguments:
    """The options from their groups."""
    unknown = sorted(script_arguments.keys() - set(IDLE))
    if unknown:
        raise ValueError(
            f"--script-arguments must hold options of PyTorch's trainers alone; got {unknown}. "
            "Those that do something here have an option of their own."
        )
    values = dict(script_arguments)
    for group in groups.values():
        values |= vars(group)
    return UnslothTrainingArguments(**values)


def _default(field: dataclasses.Field) -> Any:
    """Of the program: as in Python, but that it always writes somewhere."""
    return DEFAULT_OUTPUT if field.name == "output_dir" else field.default


def _shown(name: str, hint: Any, text: str) -> Any:
    """A field's type with its explanation, and a short word for its value."""
    if name in OWN:
        kind, word, said, hint_shown = OWN[name]
        more = {} if hint_shown else {"help_behavior_hint": ""}
        return Annotated[kind, tyro.conf.arg(metavar=word, help=said, **more)]
    help_text = text.removesuffix(".")
    if name == "mesh":
        return Annotated[hint, _MESH, tyro.conf.arg(help=_MESH_HELP)]
    members = set(typing.get_args(hint)) or {hint}
    if any(typing.get_origin(member) is Mapping for member in members):
        return Annotated[hint, _JSON, tyro.conf.arg(help=help_text)]
    if bool in members:
        return Annotated[hint, tyro.conf.arg(help=help_text)]
    if any(typing.get_origin(member) is os.PathLike for member in members):
        return Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help=help_text)]
    numbers = members <= {int, float, type(None)}
    several = any(typing.get_args(member) for member in members)
    word = "N" if numbers else "NAME [NAME ...]" if several else "NAME"
    return Annotated[hint, tyro.conf.arg(metavar=word, help=help_text)]


def _parsed(words: list[str]) -> Any:
    """An option's JSON."""
    if words[0] == "None":
        return None
    try:
        value = json.loads(words[0])
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON, such as '{{\"min_lr_rate\": 0.1}}'; {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object; got {words[0]}")
    return value


def _parsed_mesh(words: list[str]) -> Any:
    """The word "auto", or sizes in JSON."""
    return words[0] if words[0] == "auto" else _parsed(words)


FOREIGN = "script_arguments"
_FOREIGN = (
    "Options that only PyTorch's trainers have, as a file written for them holds; taken at the "
    "values that change nothing here"
)
_JSON = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=_parsed,
    is_instance=lambda value: value is None or isinstance(value, Mapping),
    str_from_instance=lambda value: ["None" if value is None else json.dumps(value)],
)
_MESH_HELP = (
    "Devices to train on: auto, which is all, or the sizes of the axes data, fsdp and tensor, such "
    'as {"data": 2, "fsdp": 4}'
)
_MESH = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="auto|JSON",
    instance_from_str=_parsed_mesh,
    is_instance=lambda value: value is None or isinstance(value, str | Mapping),
    str_from_instance=lambda value: [value if isinstance(value, str) else json.dumps(value)],
)
