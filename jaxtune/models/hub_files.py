"""Which of a repository's files are read, by the names of all its files."""

from collections.abc import Collection
from pathlib import Path

from convert.checkpoint import INDEX_FILE, SINGLE_FILE, read_weight_map
from convert.errors import shown
from convert.peft import CONFIG_FILE, TENSORS_FILE
from jaxtune.errors import ModelNotFoundError

# Configuration, tokenizer (tokenizer.json; or vocab.json with merges.txt; or sentencepiece's
# tokenizer.model), chat template, and the index of the weights.
SMALL_FILES = ("*.json", "*.jinja", "*.model", "merges.txt")
# A pattern's `*` matches slashes too: sub-folders (onnx/, original/) are left out by the first one.
NOT_READ = ("*/*", "*.bin.index.json")


def weight_files(name: str, folder: Path, files: Collection[str]) -> list[str]:
    """Choose the weight files that `convert` will read, in its order of preference.

    Beside them a repository may hold the same weights again, as consolidated.safetensors (Mistral),
    original/*.pth (Llama), .bin, GGUF or onnx/.

    Args:
      name: The hub id, for the errors.
      folder: Holds the small files, the index among them.
      files: The names of all the repository's files.

    Returns:
      Names of files of the repository's top folder.

    Raises:
      ModelNotFoundError: No safetensors, no configuration, or an index that names a missing file.
      CheckpointError: The index is damaged, or names a path.
    """
    if CONFIG_FILE in files:
        wanted = [TENSORS_FILE]
    elif SINGLE_FILE in files:
        wanted = [SINGLE_FILE]
    elif INDEX_FILE in files:
        wanted = sorted(set(read_weight_map(folder / INDEX_FILE).values()))
    else:
        raise _no_safetensors(name, files)
    lacking = [file for file in wanted if file not in files]
    if lacking == [TENSORS_FILE]:
        raise _no_safetensors(name, files)
    if lacking:
        raise ModelNotFoundError(
            f"a repository must hold every file that its {INDEX_FILE} names; got `{name}` without "
            f"{shown(lacking[0])} ({len(lacking)} of {len(wanted)} are missing); wanted all of "
            "them. Its upload is not complete: use another revision or repository, or tell its "
            "owner."
        )
    if CONFIG_FILE not in files and "config.json" not in files:
        raise ModelNotFoundError(
            f"a model must have a config.json; got `{name}`, which has none; wanted a repository "
            "that transformers' save_pretrained wrote. Check the name."
        )
    return wanted


def _no_safetensors(name: str, files: Collection[str]) -> ModelNotFoundError:
    """Say what the repository holds instead, and what the user can do about it."""
    wanted = f"{SINGLE_FILE}, {INDEX_FILE} with its files, or {CONFIG_FILE} with {TENSORS_FILE}"
    got = f"which holds {shown(sorted(files)[:6])}" if files else "which is empty"
    cure = "Look for a repository of the same model in Hugging Face's format."
    for kind, convert in (
        ("pytorch_model", f"AutoModelForCausalLM.from_pretrained({name!r})"),
        ("adapter_model", f"PeftModel.from_pretrained(base_model, {name!r})"),
    ):
        pickles = [file for file in files if file.startswith(kind) and file.endswith(".bin")]
        if pickles:
            got = f"which holds only pickle ({shown(min(pickles))}), which can run code and is "
            got += "never read"
            cure = (
                "If you trust it, convert it once where torch is installed: "
                f"{convert}.save_pretrained(folder), and pass the folder."
            )
            break
    else:
        ggufs = [file for file in files if file.lower().endswith(".gguf")]
        if ggufs:
            got = f"which holds only GGUF ({shown(min(ggufs))}), a format for inference"
            cure = "Pass the repository that it was made from; the model's card names it."
    return ModelNotFoundError(
        f"a model's weights must be safetensors; got `{name}`, {got}; wanted {wanted}. {cure}"
    )
