"""A LoRA adapter as PEFT's folder: adapter_model.safetensors and adapter_config.json.

Tensor names are PEFT's own: `base_model.model.` + the module's path + `.lora_A.weight` [R, in],
`.lora_B.weight` [out, R], with DoRA `.lora_magnitude_vector` [out]; modules_to_save and trained
biases by their own names.
Source: https://github.com/huggingface/peft `utils/save_and_load.py` @ v0.21.2.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from convert.adapter_config import AdapterConfig, names_module
from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, broken, shown
from convert.header import TensorInfo, read_header
from convert.json_object import read_json_object
from convert.tensors import atomic, write_json, write_safetensors

TENSORS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
_SIDE = re.compile(r"base_model\.model\.(.+)\.lora_(?:(A|B)\.weight|embedding_(A|B))")
MAGNITUDE = "lora_magnitude_vector"
_LENGTHS = f".{MAGNITUDE}"
_FLOATS = frozenset(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
_Shaped = np.ndarray | TensorInfo


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that was read.

    Attributes:
      config: Its configuration.
      tensors: Its arrays by PEFT's names.
    """

    config: AdapterConfig
    tensors: dict[str, np.ndarray]


def write_adapter(folder: Path, tensors: Mapping[str, np.ndarray], config: AdapterConfig) -> None:
    """Write an adapter that plain PEFT loads: both files are complete before either is replaced.

    Args:
      folder: Created if it is missing; the two files in it are replaced.
      tensors: Arrays by PEFT's names, float32, bfloat16 or float16.
      config: Their configuration.

    Raises:
      CheckpointError: no tensors, a name or dtype that PEFT would not load, an A without its B,
        ranks that disagree with each other or with `config`. Nothing is written then.
    """
    _check(tensors, config, "The adapter to be written")
    folder.mkdir(parents=True, exist_ok=True)
    # The tensors are renamed first: the one entered last is left first.
    with atomic(folder / CONFIG_FILE) as settings, atomic(folder / TENSORS_FILE) as weights:
        write_safetensors(weights, tensors, {"format": "pt"})
        write_json(settings, config.to_json_dict())


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter that we or PEFT wrote.

    Args:
      folder: Holds adapter_model.safetensors and adapter_config.json.

    Returns:
      Configuration and tensors, checked as `write_adapter` does.

    Raises:
      CheckpointError: as `open_adapter`.
    """
    config, tensors = open_adapter(folder)
    with tensors:
        arrays = {name: tensors.read(name) for name in tensors.names}
    return Adapter(config=config, tensors=arrays)


def open_adapter(folder: Path) -> tuple[AdapterConfig, Checkpoint]:
    """Read an adapter's configuration, and open its tensors to be read one at a time.

    Args:
      folder: Holds adapter_model.safetensors and adapter_config.json.

    Returns:
      The configuration, and the tensors to be used in a `with` statement; checked as
      `write_adapter` does. PEFT's `exclude_modules` has become the plain list of the modules that
      are left in `target_modules`.

    Raises:
      CheckpointError: a file is missing (pickle is never read) or damaged, the configuration would
        change the maths, or the tensors do not fit it.
    """
    for name in (CONFIG_FILE, TENSORS_FILE):
        if not (folder / name).is_file():
            raise _missing(folder, name)
    values = read_json_object(folder / CONFIG_FILE)
    infos = read_header(folder / TENSORS_FILE)
    if values.pop("exclude_modules", None):
        values["target_modules"] = sorted({module for module, _ in map(lora_side, infos) if module})
    config = AdapterConfig.from_json_dict(values)
    _check(infos, config, str(folder / TENSORS_FILE))
    return config, Checkpoint(folder, infos)


def lora_side(name: str) -> tuple[str, str]:
    """Take a tensor's name apart.

    Args:
      name: PEFT's name.

    Returns:
      The adapted module's path and "A" or "B"; two empty strings for any other tensor.
    """
    side = _SIDE.fullmatch(name)
    return ("", "") if side is None else (side[1], side[2] or side[3])


def is_magnitude(name: str) -> bool:
    """Say whether a tensor holds DoRA's lengths of rows.

    Args:
      name: PEFT's name.

    Returns:
      True if it does.
    """
    return name.startswith(PREFIX) and name.endswith(_LENGTHS)


def _missing(folder: Path, name: str) -> CheckpointError:
    """Say which file is missing, and how to convert an adapter that is only there as pickle."""
    got, cure = f"no {name} in {folder}", "Check the path, or save the adapter again."
    if name == TENSORS_FILE and (folder / "adapter_model.bin").is_file():
        got = f"only adapter_model.bin in {folder}, which is pickle, can run code and is never read"
        cure = (
            "If you trust it, convert it once where torch is installed: "
            "PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)."
        )
    return broken(
        f"An adapter must be a folder with {TENSORS_FILE} and {CONFIG_FILE}",
        got=got,
        wanted="both files",
        cure=cure,
    )


def _check(tensors: Mapping[str, _Shaped], config: AdapterConfig, what: str) -> None:
    """Check names, dtypes, pairs and ranks."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    lengths: dict[str, tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise _unfit(what, f"{shown(name)} of dtype {tensor.dtype}", "float32/bfloat16/float16")
        module, side = lora_side(name)
        if module:
            pairs.setdefault(module, {})[side] = tensor.shape
        elif config.use_dora and is_magnitude(name):
            lengths[name.removeprefix(PREFIX).removesuffix(_LENGTHS)] = tensor.shape
        elif not _is_whole(name, config.modules_to_save or ()):
            raise _unfit(
                what,
                f"the name {shown(name)}",
                f"{PREFIX}<module>.lora_A.weight, .lora_B.weight, or a whole .weight or .bias",
            )
    if not tensors or (not pairs and config.modules_to_save is None):
        raise _unfit(what, f"{len(tensors)} tensors and no lora_A", "at least one pair A, B")
    for module, pair in pairs.items():
        _check_pair(module, pair, config, what)
    wanted = {module: pair["B"][:1] for module, pair in pairs.items() if config.use_dora}
    for module in sorted({*wanted, *lengths}):
        if lengths.get(module) != wanted.get(module):
            got = f"{module} with magnitudes {lengths.get(module)}"
            raise _unfit(what, got, f"{MAGNITUDE} [out] beside each pair")


def _is_whole(name: str, saved: Iterable[str]) -> bool:
    """True for the name of a whole weight or bias: modules_to_save, trained biases, base layers."""
    if not name.startswith(PREFIX) or "lora_" in name:
        return False
    return name.endswith((".weight", ".bias")) or any(f"{module}." in name for module in saved)


def _check_pair(
    module: str, pair: Mapping[str, tuple[int, ...]], config: AdapterConfig, what: str
) -> None:
    """Check that A [R, in] and B [out, R] are both there, with the rank that PEFT will build."""
    for side in "AB":
        if side not in pair:
            raise _unfit(what, f"{module} without its lora_{side}", "both lora_A and lora_B")
    shapes = f"{module} with A {pair['A']} and B {pair['B']}"
    if len(pair["A"]) != 2 or len(pair["B"]) != 2 or pair["A"][0] != pair["B"][1]:
        raise _unfit(what, shapes, "A [R, in] and B [out, R] of one rank R")
    rank = config.rank_for(module)
    if rank is not None and pair["A"][0] != rank:
        raise _unfit(what, shapes, f"rank {rank}, as `r` and `rank_pattern` say")
    names = config.target_modules
    if not isinstance(names, str) and not any(names_module(name, module) for name in names):
        raise _unfit(what, f"{module}, which PEFT would skip", f"one of {shown(names)}")


def _unfit(what: str, got: str, wanted: str) -> CheckpointError:
    """Build the error for tensors that do not make an adapter."""
    return broken(
        f"{what} must be tensors that PEFT loads",
        got=got,
        wanted=wanted,
        cure="Check that tensors and configuration belong to the same adapter.",
    )
