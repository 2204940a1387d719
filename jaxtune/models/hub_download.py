"""A hub id to a folder of the hub's cache, through huggingface_hub; its errors put into words."""

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, snapshot_download

# HTTPError is the base class of httpx (huggingface_hub 1) or httpx2 (2), whichever is in use.
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from jaxtune.errors import ModelNotFoundError
from jaxtune.models.hub_files import NOT_READ, SMALL_FILES, weight_files

HUB = "https://huggingface.co"


def download(
    name: str,
    *,
    token: str | None,
    revision: str | None,
    local_files_only: bool,
    before_weights: Callable[[Path], object] | None,
) -> Path:
    """Download the small files, look at them, then the weights; `resolve_folder` says the rest."""
    check_name(name)
    check_token(token)
    source = _Source(name, token or None, revision, local_files_only)
    folder = source.fetch(revision, SMALL_FILES, NOT_READ)
    weights = source.weights(folder)
    if before_weights is not None:
        before_weights(folder)
    if not all((folder / file).is_file() for file in weights):
        # A snapshot's folder is named by its commit: the weights belong to the small files, even
        # if the branch has moved meanwhile.
        source.fetch(folder.name, [glob.escape(file) for file in weights])
    return folder


def download_config(name: str) -> Path:
    """Download a repository's config.json alone, for what needs no weights.

    Args:
      name: Hub id.

    Returns:
      The folder of the snapshot.

    Raises:
      ValueError: No hub id.
      ModelNotFoundError: Neither the hub nor its cache has it.
    """
    check_name(name)
    return _Source(name, None, None, local_files_only=False).fetch(None, ["config.json"])


def check_name(name: str) -> None:
    """Refuse what is no hub id.

    Args:
      name: "owner/name", or "name".

    Raises:
      ValueError: The hub allows no such name.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"a model name must be an existing folder or a hub id; got {name!r}, which is neither; "
            "wanted a path, or `owner/name` in letters, digits, `-`, `_` and `.`. Check the "
            "spelling."
        ) from error


def check_token(token: str | None) -> None:
    """Refuse here what an HTTP header cannot carry: httpx would show it in its error.

    Args:
      token: As passed; None or empty: the stored one.

    Raises:
      ValueError: It has blanks, line ends or other characters; it is not shown.
    """
    if token and not all("!" <= character <= "~" for character in token):
        raise ValueError(
            "`token` must be one word of ASCII; got one with blanks, line ends or other characters "
            f"(not shown); wanted a token of {HUB}/settings/tokens as it is. Strip it, or copy it "
            "again."
        )


@dataclass(frozen=True)
class _Source:
    """What is asked of the hub, and by whom."""

    name: str
    token: str | None = field(repr=False)
    revision: str | None
    local_files_only: bool

    def fetch(
        self, revision: str | None, patterns: Sequence[str], left_out: Sequence[str] = ()
    ) -> Path:
        """Bring the files that match into the cache; the folder of the snapshot."""
        try:
            folder = snapshot_download(
                self.name,
                token=self.token,
                revision=revision,
                local_files_only=self.local_files_only,
                allow_patterns=list(patterns),
                ignore_patterns=list(left_out),
            )
        except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            raise ModelNotFoundError(self._explain(error)) from error
        return Path(folder)

    def weights(self, folder: Path) -> list[str]:
        """The weight files of the snapshot, by the listing of the repository if it is known."""
        try:
            tree = get_cached_repo_tree(self.name, revision=folder.name)
        except CachedRepoTreeNotFoundError as unknown:
            # A copy made file by file, by transformers for one: what is there must be enough.
            held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            try:
                return weight_files(self.name, folder, held)
            except ModelNotFoundError:
                raise ModelNotFoundError(self._no_copy("its weights are missing")) from unknown
        return weight_files(self.name, folder, {file.path for file in tree})

    def _explain(self, error: Exception) -> str:
        """One message for each thing that a user can do about it."""
        # huggingface_hub looks into its cache when the hub refuses, and says only then why.
        cause = error.__cause__ or error if isinstance(error, LocalEntryNotFoundError) else error
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if isinstance(cause, GatedRepoError):
            return self._gated()
        if isinstance(cause, RepositoryNotFoundError):
            return self._missing()
        if isinstance(cause, RevisionNotFoundError):
            return self._no_revision()
        if status in (401, 403):
            return self._refused(status)
        if self.local_files_only:
            reason = "local_files_only=True keeps off the network"
        elif isinstance(cause, OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set"
        elif status is not None:
            reason = f"the hub answered {status}"
        else:
            reason = f"the hub cannot be reached ({type(cause).__name__})"
        return self._no_copy(reason)

    def _gated(self) -> str:
        return (
            "a gated model is served to accounts that its owners have let in; got "
            f"`{self.name}`, asked for without a token or with the token of another account; "
            "wanted the token of an account that has access. Accept the licence at "
            f"{HUB}/{self.name}, then pass token= or run `hf auth login`."
        )

    def _missing(self) -> str:
        return (
            "a model name must be an existing folder or a repository of the hub; got "
            f"`{self.name}`, which is no folder here and which the hub does not show: it does not "
            "exist, or it is private and asked for without a token that may read it; wanted a name "
            f"that {HUB}/{self.name} shows. Check the spelling; if it is private, pass token= or "
            "run `hf auth login`."
        )

    def _no_revision(self) -> str:
        return (
            "`revision` must be a branch, tag or commit of the repository; got "
            f"{self.revision!r}, which `{self.name}` does not have; wanted one that "
            f"{HUB}/{self.name}/tree/main offers. Check the spelling, or leave it out for the main "
            "branch."
        )

    def _refused(self, status: int) -> str:
        return (
            "a token must be valid and may read the repository; got one, passed or stored, with "
            f"which the hub refused `{self.name}` ({status}); wanted one with read access. Make "
            f"one at {HUB}/settings/tokens and pass token= or run `hf auth login`; a public model "
            "needs none (`hf auth logout` forgets a stored one)."
        )

    def _no_copy(self, reason: str) -> str:
        at, option = "", ""
        if self.revision is not None:
            at, option = f" at revision {self.revision!r}", f" --revision {self.revision}"
        return (
            "a model that is not downloaded now must be a folder, or in the hub's cache; got "
            f"`{self.name}`{at}; there is no such folder, {constants.HF_HUB_CACHE} holds no whole "
            f"copy, and {reason}; wanted a whole copy or the network. Where there is a network, "
            f"run `hf download {self.name}{option}` or load the model once, then try again."
        )
