"""The files that go with a model's weights: tokenizer, generation and image settings."""

from pathlib import Path

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
    """
    return {name: folder / name for name in _TOKENIZER if (folder / name).is_file()}


def companions(base: Path, adapter: Path) -> list[Path]:
    """List the files that a merged model gets beside its weights and config.json.

    Args:
      base: The base model's folder.
      adapter: The adapter's; where it has a file of the tokenizer, that one counts.

    Returns:
      Existing files, each name once.
    """
    theirs, ours = tokenizer_files(base), tokenizer_files(adapter)
    if _TOKENIZER_CONFIG in ours:
        theirs = {name: file for name, file in theirs.items() if name not in _SUPERSEDED}
    generation = [base / GENERATION_FILE] if (base / GENERATION_FILE).is_file() else []
    return [*generation, *(theirs | ours).values()]
