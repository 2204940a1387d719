"""A full Hugging Face checkpoint: shards and index, config.json, the files that go with them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convert.checkpoint import INDEX_FILE, SINGLE_FILE
from convert.disk_space import check_space
from convert.errors import broken, shown
from convert.staging import staged_folder
from convert.stream import LazyTensor, Progress, safetensors_bytes, write_lazy_safetensors
from convert.tensors import copy_file, write_json

MODEL_CONFIG_FILE = "config.json"
SHARD_BYTES = 5_000_000_000
_METADATA = {"format": "pt"}
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_SMALL_FILES_BYTES = 2**20
_Shards = dict[str, dict[str, LazyTensor]]


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    config: Mapping[str, object],
    *,
    max_shard_bytes: int = SHARD_BYTES,
    copied: Sequence[Path] = (),
    progress: Progress | None = None,
) -> None:
    """Write a folder that `from_pretrained` loads, with one tensor in memory at a time.

    All of it or nothing: everything is written into a hidden folder beside and then moved into
    place. In a folder that exists, weights come first and config.json last; then the weights of an
    earlier checkpoint go, and its other files stay.

    Args:
      folder: Created if it is missing.
      tensors: By Hugging Face's names; they are read, and shards are filled, in this order. A
        weight `x` and the parts `x.*` that follow it, if it is quantised, share a shard.
      config: What config.json shall hold.
      max_shard_bytes: Most bytes of tensors in one file; a larger weight has a file of its own.
      copied: Files to copy by their names, such as those of the tokenizer.
      progress: Called after each tensor with its name and its bytes.

    Raises:
      CheckpointError: `folder` is a file or holds an adapter, nothing to write, a file to copy that
        is missing or clashes, too little space on the disk (checked before a tensor is read), or
        what `write_lazy_safetensors` refuses.
      OSError: the disk refused.
      TypeError: `config` has no JSON form.
    """
    _check_target(folder)
    _check_arguments(tensors, max_shard_bytes, copied)
    shards = _shards(tensors, max_shard_bytes)
    index = {INDEX_FILE: _index(shards)} if len(shards) > 1 else {}
    names = [*shards, *index, *(file.name for file in copied), MODEL_CONFIG_FILE]
    _check_space(folder, shards, copied)
    with staged_folder(folder, names, _stale(folder, names)) as staging:
        for name, value in {MODEL_CONFIG_FILE: dict(config), **index}.items():
            write_json(staging / name, value)
        for file in copied:
            copy_file(file, staging / file.name)
        for name, part in shards.items():
            write_lazy_safetensors(staging / name, part, _METADATA, progress=progress)


def _check_target(folder: Path) -> None:
    """Check that a checkpoint can stand at this path, and be loaded from it."""
    if folder.exists() and not folder.is_dir():
        raise broken(
            "A checkpoint must be written to a folder",
            got=f"the file {folder}",
            wanted="a new or an existing folder",
            cure="Choose another path.",
        )
    if (folder / "adapter_config.json").exists():
        raise broken(
            "A full checkpoint must not share a folder with an adapter",
            got=f"adapter_config.json in {folder}",
            wanted="a folder of its own, since transformers would add the adapter a second time",
            cure="Choose another path.",
        )


def _check_arguments(
    tensors: Mapping[str, LazyTensor], max_shard_bytes: int, copied: Sequence[Path]
) -> None:
    """Check what is to be written, before anything is."""
    if not tensors or max_shard_bytes <= 0:
        raise broken(
            "A checkpoint must have tensors, and shards that can hold some",
            got=f"{len(tensors)} tensors and max_shard_bytes={max_shard_bytes}",
            wanted="at least one tensor and one byte",
            cure="Pass the whole model's tensors.",
        )
    taken = {MODEL_CONFIG_FILE}
    for file in copied:
        if not file.is_file() or file.name in taken or _WEIGHTS.fullmatch(file.name):
            raise broken(
                "Each file to copy beside the weights must exist and have a name of its own",
                got=shown(str(file)),
                wanted="a file whose name is not config.json, a shard's or another's",
                cure="Leave it out, or rename it.",
            )
        taken.add(file.name)


def _shards(tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> _Shards:
    """Fill shards in order; {file name: its tensors}."""
    parts: list[dict[str, LazyTensor]] = [{}]
    used = 0
    for weight in _weights(tensors):
        size = sum(tensor.nbytes for tensor in weight.values())
        if parts[-1] and used + size > max_shard_bytes:
            parts.append({})
            used = 0
        parts[-1] |= weight
        used += size
    if len(parts) == 1:
        return {SINGLE_FILE: parts[0]}
    return {
        f"model-{number:05d}-of-{len(parts):05d}.safetensors": part
        for number, part in enumerate(parts, start=1)
    }


def _weights(tensors: Mapping[str, LazyTensor]) -> Iterator[dict[str, LazyTensor]]:
    """Each weight with its parts: older transformers look for these in the weight's file only."""
    weight: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if weight and not name.startswith(f"{next(iter(weight))}."):
            yield weight
            weight = {}
        weight[name] = tensor
    yield weight


def _index(shards: _Shards) -> dict[str, object]:
    """What model.safetensors.index.json says: where each tensor is, and the sum of their bytes."""
    size = sum(tensor.nbytes for part in shards.values() for tensor in part.values())
    weight_map = {name: file for file, part in shards.items() for name in part}
    return {"metadata": {"total_size": size}, "weight_map": weight_map}


def _stale(folder: Path, names: Sequence[str]) -> list[str]:
    """The weights of an earlier checkpoint in the folder that the new one does not replace."""
    if not folder.is_dir():
        return []
    old = sorted(path.name for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name))
    return [name for name in old if name not in names]


def _check_space(folder: Path, shards: _Shards, copied: Sequence[Path]) -> None:
    """Check that the disk can hold the new files beside the old ones, which stay till the end."""
    wanted = sum(safetensors_bytes(part, _METADATA) for part in shards.values())
    wanted += sum(file.stat().st_size for file in copied) + _SMALL_FILES_BYTES
    check_space(folder, wanted)
