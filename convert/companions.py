"""The files that go with a model's weights: tokenizer, generation and image settings."""

from pathlib import Path

from convert.errors import broken

GENERATION_FILE = "generation_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# What newer tokenizers hold in tokenizer.json and tokenizer_config.json. A base's copy must not
# overrule the tokenizer that was saved with the adapter.
_SUPERSEDED = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_TOKENIZER = (
    *("tokenizer.json", _TOKENIZER_CONFIG, *_SUPERSEDED),
    *("tokenizer.model", "vocab.json", "merges.txt"),
    *("preprocessor_config.json", "processor_config.json"),
)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """List the tokenizer's and processor's files in a folder.

    Args:
      folder: Of a model or an adapter.

    Returns:
      {name: file} of those that are there.

    Raises:
      CheckpointError: one is a link out of the folder: these files are copied as they are, into
        what may be published, and a link could name any file of this machine.
    """
    found = {name: folder / name for name in _TOKENIZER if (folder / name).is_file()}
    for file in found.values():
        _check_link(folder, file)
    return found


def _check_link(folder: Path, file: Path) -> None:
    """Refuse a link that leads out of its folder, but for those of the hub's cache."""
    target = file.resolve()
    blobs = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not blobs and not target.is_relative_to(folder.resolve()):
        raise broken(
            f"{file} is copied beside the weights, and must be a file of its own folder",
            got=f"a link to {target}",
            wanted="the file itself, or a link into the hub's cache",
            cure="Do not use this folder unless you trust its source; else copy the file there.",
        )


def companions(base: Path, adapter: Path) -> list[Path]:
    """List the files that a merged model gets beside its weights and config.json.

    Args:
      base: The base model's folder.
      adapter: The adapter's; where it has a file of the tokenizer, that one counts.

    Returns:
      Existing files, each name once.

    Raises:
      CheckpointError: one is a link out of its folder.
    """
    theirs, ours = tokenizer_files(base), tokenizer_files(adapter)
    if _TOKENIZER_CONFIG in ours:
        theirs = {name: file for name, file in theirs.items() if name not in _SUPERSEDED}
    generation = [base / GENERATION_FILE] if (base / GENERATION_FILE).is_file() else []
    for file in generation:
        _check_link(base, file)
    return [*generation, *(theirs | ours).values()]
