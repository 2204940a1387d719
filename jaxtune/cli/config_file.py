"""`--config FILE`: options from YAML, put before those of the command line, which win."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtune.cli.train_options import Train
from jaxtune.cli.training_fields import IDLE
from jaxtune.training.config import UnslothTrainingArguments

_OPTION = "--config"
_LARGEST = 2**20  # bytes of a file of options


def with_config(arguments: Sequence[str]) -> list[str]:
    """The arguments of `train`, with those of its file spelt out before them.

    Args:
      arguments: Of the command line, after the command.

    Returns:
      Arguments of which a later one wins.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not YAML, not a mapping, or names an option that does not exist.
    """
    file = _file_of(arguments)
    if file is None:
        return list(arguments)
    return [*_spelt(file, read_config(file)), *arguments]


def read_config(file: Path) -> dict[str, Any]:
    """Read a file of options; nothing in it is run.

    Args:
      file: YAML: one mapping from names of options to values.

    Returns:
      {name of the field: value}.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: As in `with_config`.
    """
    import yaml  # 20 ms, for those who use it

    if not file.is_file():
        raise FileNotFoundError(f"{_OPTION} must be a file of YAML; {file} is none.")
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{_OPTION} must be a small file of options; {file} is over 1 MiB.")
    try:
        text = file.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError(  # a few lines of them can stand for gigabytes
                f"{_OPTION} must have no aliases (*name); {file} has one. Write the value out."
            )
        held = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{_OPTION} must be plain YAML, one option a line; {file}: "
            f"{' '.join(str(error).split())}. Write lines such as `learning_rate: 2e-4`."
        ) from error
    if not isinstance(held, Mapping):
        raise ValueError(
            f"{_OPTION} must map names of options to values; {file} holds a "
            f"{type(held).__name__}. Write lines such as `learning_rate: 2e-4`."
        )
    known = _options()
    found = {}
    for key, value in held.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ValueError(_unknown(file, str(key), known))
        if name in found:
            raise ValueError(f"an option must stand once; {file} has `{name}` twice.")
        found[name] = value
    return found


def _options() -> list[str]:
    """The names of all options but that of the file."""
    own = [field.name for field in dataclasses.fields(Train)]
    training = [field.name for field in dataclasses.fields(UnslothTrainingArguments)]
    return [name for name in own + training if name not in ("config", "args")]


def _unknown(file: Path, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
    cure = f"Did you mean `{near[0]}`?" if near else "`jaxtune train --help` lists the options."
    return f"{file} must hold options of `jaxtune train` alone; got `{key}`. {cure}"


def _file_of(arguments: Sequence[str]) -> Path | None:
    """The last file that is named."""
    found = None
    for place, word in enumerate(arguments):
        if word.startswith(f"{_OPTION}="):
            found = word.removeprefix(f"{_OPTION}=")
        elif word == _OPTION and place + 1 < len(arguments):
            found = arguments[place + 1]
    return None if found is None else Path(found)


def _spelt(file: Path, options: Mapping[str, Any]) -> list[str]:
    """The options as a command line has them; YAML's `2e-4`, a text, is then read as a number."""
    words: list[str] = []
    flags = _flags()
    idle = {name: value for name, value in options.items() if name in IDLE}
    if idle:
        words.append(f"--script-arguments={json.dumps(idle, default=str)}")
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name in idle:
            continue
        if name == "resume_from_checkpoint" and isinstance(value, bool):
            words += [f"{option}=last"] if value else []
        elif name in flags and isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, Mapping):
            words.append(f"{option}={json.dumps(value, default=str)}")
        elif isinstance(value, list):
            if any(str(item).startswith("--") for item in value):
                raise ValueError(f"an item of `{name}` must not begin with --; {file} has one.")
            words += [option, *map(str, value)] if value else []
        else:
            words.append(f"{option}={value}")
    return words


def _flags() -> set[str]:
    """The options that are on or off, and take no word."""
    fields = [*dataclasses.fields(Train), *dataclasses.fields(UnslothTrainingArguments)]
    return {field.name for field in fields if field.type in (bool, "bool")}
