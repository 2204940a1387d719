"""Saved folders to the Hugging Face hub, through huggingface_hub; its errors put into words."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtune.errors import HubUploadError
from jaxtune.gguf_export import save_pretrained_gguf
from jaxtune.model_card import CARD, is_ours
from jaxtune.models.decoder import CausalLM
from jaxtune.models.one_host import check_on_one_host, for_writing
from jaxtune.saving import SHARD_BYTES, save_pretrained, save_pretrained_merged

MESSAGE = "Upload a model fine-tuned with jaxtune"
Save = Callable[[CausalLM, Path], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Destination:
    """Where an upload goes, and how it is called there.

    Attributes:
      repo_id: "owner/name", or "name" for the token's own account; made if it is missing.
      token: Hub access token that may write; None: the stored one. Never shown.
      private: Whether a new repository is private; None: the account's default.
      commit_message: Of the one commit; None: `MESSAGE`.
      commit_description: Its text below.
      revision: Branch to commit to; None: the main branch.
      create_pr: Open a pull request instead of committing to the branch.
    """

    repo_id: str
    token: str | None = dataclasses.field(default=None, repr=False)
    private: bool | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    revision: str | None = None
    create_pr: bool = False


def push_adapter(model: CausalLM, destination: Destination) -> Any:
    """Upload what `save_pretrained` writes.

    Args:
      model: With something trained.
      destination: Of the commit.

    Returns:
      huggingface_hub's `CommitInfo`.

    Raises:
      HubUploadError: No token, or one that may not write there; the hub refused, or is out of
        reach. Nothing was written to a disk before the repository was there.
      ValueError: No hub id, a malformed token, or what `save_pretrained` refuses.
    """
    return _push(model, destination, save_pretrained)


def push_merged(
    model: CausalLM,
    destination: Destination,
    tokenizer: Any,
    save_method: str,
    max_shard_bytes: int = SHARD_BYTES,
) -> Any:
    """Upload what `save_pretrained_merged` writes, the tokenizer with it.

    Args:
      model: With or without an adapter.
      destination: Of the commit.
      tokenizer: As in `save_pretrained_merged`.
      save_method: Likewise.
      max_shard_bytes: Likewise.

    Returns:
      huggingface_hub's `CommitInfo`.

    Raises:
      HubUploadError: As `push_adapter`.
      ValueError: Likewise.
    """
    return _push(
        model,
        destination,
        lambda own, folder: save_pretrained_merged(
            own, folder, tokenizer, save_method=save_method, max_shard_bytes=max_shard_bytes
        ),
        whole=save_method != "lora",
    )


def push_gguf(
    model: CausalLM,
    destination: Destination,
    tokenizer: Any,
    quantization_method: str | Sequence[str],
) -> Any:
    """Upload what `save_pretrained_gguf` writes.

    Args:
      model: With or without an adapter.
      destination: Of the commit.
      tokenizer: As in `save_pretrained_gguf`.
      quantization_method: Likewise.

    Returns:
      huggingface_hub's `CommitInfo`.

    Raises:
      HubUploadError: As `push_adapter`.
      ValueError: Likewise.
    """
    check_on_one_host(model, "a GGUF file")
    return _push(
        model,
        destination,
        lambda own, folder: save_pretrained_gguf(own, folder, tokenizer, quantization_method),
    )


def saved_and_pushed(
    model: CausalLM,
    destination: Destination | None,
    folder: str | Path,
    save: Save,
    *,
    whole: bool = False,
) -> None:
    """Save into a folder of the user's, and upload what was written there.

    Args:
      model: To save.
      destination: Of the commit; None: nothing is uploaded.
      folder: Where `save` writes; other files in it stay here.
      save: Writes a model into a folder.
      whole: It writes the frozen weights too.

    Raises:
      HubUploadError: As `push_adapter`; without a repository to write to nothing is saved either.
    """
    if destination is None:
        save(model, Path(folder))
    else:
        _push(model, destination, save, Path(folder), whole=whole)


def repository_of(folder: str | Path) -> str:
    """The repository that scripts mean by a folder to save to: "owner/name", or the last name."""
    text = str(folder)
    if text.count("/") == 1 and not text.startswith((".", "~", "/")) and not text.endswith("/"):
        return text
    return Path(text).expanduser().resolve().name


def _push(
    model: CausalLM,
    destination: Destination,
    save: Save,
    folder: Path | None = None,
    *,
    whole: bool = False,
) -> Any:
    """Of several processes the first alone talks to the hub; the others get None."""
    with for_writing(model, whole=whole) as own:
        return None if own is None else _upload(own, destination, save, folder)


def _upload(model: CausalLM, destination: Destination, save: Save, folder: Path | None) -> Any:
    """Make the repository, write a folder, by default one of its own that goes again, upload it."""
    # huggingface_hub takes 0.2 s to import, and only an upload needs it.
    from huggingface_hub import HfApi

    api = HfApi(token=_token(destination))
    with _explained(destination):
        repository = api.create_repo(
            destination.repo_id, private=destination.private, exist_ok=True
        ).repo_id
    with tempfile.TemporaryDirectory() as place:
        folder = folder or Path(place) / "model"
        before = _times(folder)
        save(model, folder)
        written = [name for name, time in _times(folder).items() if before.get(name) != time]
        with _explained(destination):
            left_out = [CARD] if _has_own_card(api, repository, destination, Path(place)) else []
            return api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=destination.commit_message or MESSAGE,
                commit_description=destination.commit_description,
                revision=destination.revision,
                create_pr=destination.create_pr,
                allow_patterns=[_literal(name) for name in written],
                ignore_patterns=left_out,
            )


def _times(folder: Path) -> dict[str, int]:
    """When each file of a folder was written, and which it is."""
    files = folder.iterdir() if folder.is_dir() else ()
    return {file.name: file.stat().st_mtime_ns for file in files if file.is_file()}


def _literal(name: str) -> str:
    """The pattern that matches a file's name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _token(destination: Destination) -> str:
    """The token of the upload, and an error without one."""
    from huggingface_hub import get_token

    from jaxtune.models.hub_download import check_name, check_token

    check_name(destination.repo_id)
    check_token(destination.token)
    token = destination.token or get_token()
    if token is None:
        raise HubUploadError(
            f"an upload needs a token of the hub; got none for `{destination.repo_id}`, passed or "
            "stored; wanted one with write access. Make one at "
            "https://huggingface.co/settings/tokens and pass token= or run `hf auth login`."
        )
    return token


def _has_own_card(api: Any, repository: str, destination: Destination, place: Path) -> bool:
    """Whether the repository has a README that its owner wrote."""
    if not api.file_exists(repository, CARD, revision=destination.revision):
        return False
    held = api.hf_hub_download(
        repository, CARD, revision=destination.revision, local_dir=place / "card"
    )
    return not is_ours(Path(held))


@contextlib.contextmanager
def _explained(destination: Destination) -> Iterator[None]:
    """Say what the hub's refusal means for the upload."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, RuntimeError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            reason = f"the hub refused the token ({status})"
            cure = "Pass a token= of an account that may write there, with the scope to write."
        elif status is not None:
            reason = f"the hub answered {status}"
            cure = "Check the name of the repository and the revision, and try again."
        elif isinstance(error, RuntimeError):  # of its own, or of hf_xet: a file did not arrive
            reason = f"the upload broke off ({error})"
            cure = "Push again: what has arrived is not sent twice."
        else:
            reason = f"the hub cannot be reached ({type(error).__name__})"
            cure = "Check the network, save with save_pretrained meanwhile, and push again."
        raise HubUploadError(
            f"an upload needs a repository that the token may write to; got "
            f"`{destination.repo_id}`, and {reason}; wanted one of the token's account or "
            f"organisations. {cure}"
        ) from error
