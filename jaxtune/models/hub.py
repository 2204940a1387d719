"""From a model's name to its folder: a local folder as it is, a hub id through the hub's cache."""

from collections.abc import Callable
from pathlib import Path


def resolve_folder(
    name: str,
    *,
    token: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    before_weights: Callable[[Path], object] | None = None,
) -> Path:
    """A local folder as it is; a hub id downloaded, the files that loading reads and no others.

    What does not depend on the weights is said before any of them is downloaded: a repository that
    cannot be read or used, an index that names other folders, and whatever `before_weights` raises.

    Args:
      name: Folder, or "owner/name" on the Hugging Face hub. What looks like a path (it starts with
        `.`, `~` or `/`, ends with `/`, has a backslash or two slashes) is never asked of the hub.
      token: Hub access token for gated and private repositories; None or empty: the stored one.
      revision: Branch, tag or commit; None: the main branch. Of no meaning for a local folder.
      local_files_only: Use the hub's cache and no network.
      before_weights: Called once with the folder when it holds configuration and tokenizer, and
        perhaps no weights yet; an error of its stops the download.

    Returns:
      The folder that holds the files.

    Raises:
      ValueError: `name` is neither an existing folder nor a hub id, or `token` is malformed.
      FileNotFoundError: `name` is a path, and there is no such folder.
      NotADirectoryError: `name` is a file.
      ModelNotFoundError: The hub, or its cache, has no such model that can be read.
      CheckpointError: The repository's index is damaged, or names a path.
    """
    folder = _local_folder(name)
    if folder is None:
        # huggingface_hub takes 0.2 s to import, and a local folder needs none of it.
        from jaxtune.models.hub_download import download

        return download(
            name,
            token=token,
            revision=revision,
            local_files_only=local_files_only,
            before_weights=before_weights,
        )
    if before_weights is not None:
        before_weights(folder)
    return folder


def _local_folder(name: str) -> Path | None:
    """The folder that the name is; None where only the hub can have it."""
    if not name.strip():
        raise ValueError(
            f"a model name must be a folder or a hub id; got {name!r}; wanted a path, or "
            "`owner/name`. Pass model_name."
        )
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # `~someone`, who has no home here: a missing folder like any other.
        folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(
            f"a model name must be a folder or a hub id; got {name!r}, which is a file; wanted the "
            f"folder with config.json and safetensors. Pass {str(folder.parent)!r} if it is that "
            "one."
        )
    if _is_path(name):
        raise FileNotFoundError(
            f"a model name that is a path must be an existing folder; got {name!r}, and there is "
            f"nothing at {folder.absolute()}; wanted a folder with config.json and safetensors, or "
            "a hub id, `owner/name`. Check the path."
        )
    return None


def _is_path(name: str) -> bool:
    """True for what a user means as a path; a URL is none, and no hub id either."""
    if "://" in name:
        return False
    marked = name.startswith((".", "~", "/")) or name.endswith("/") or "\\" in name
    return marked or name.count("/") > 1
