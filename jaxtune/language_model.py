"""The verbs a user finds on a model: generate, save, count."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtune import hub_upload, processes, saving
from jaxtune.adapters.counting import trainable_line
from jaxtune.generation.generate import generate
from jaxtune.gguf_export import save_pretrained_gguf
from jaxtune.models.decoder import CausalLM
from jaxtune.models.one_host import check_on_one_host
from jaxtune.save_arguments import NAMED_OTHERWISE, NEUTRAL, size_in_bytes
from jaxtune.script_calls import explained
from jaxtune.verification import verify_saved


class LanguageModel(CausalLM):
    """A causal language model with what a user does to it, on top of the maths."""

    generate = generate

    @explained(NAMED_OTHERWISE, NEUTRAL)
    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        token: str | None = None,
        private: bool | None = None,
        verify: bool = False,
    ) -> None:
        """Write what was trained, for peft or transformers; see `jaxtune.saving`.

        With `verify`, what was written is read back by others' code and compared: see
        `jaxtune.verification`. With `push_to_hub`, it is uploaded too, with `token`, to the
        repository that the folder is named after, new ones `private` or not.
        """
        if verify:
            check_on_one_host(self, "what verify=True compares")
        destination = _destination(save_directory, push_to_hub, token, private)

        def save(model: CausalLM, folder: Path) -> None:
            saving.save_pretrained(model, folder)
            if verify:
                verify_saved(model, folder)

        hub_upload.saved_and_pushed(self, destination, save_directory, save)

    @explained(NAMED_OTHERWISE, NEUTRAL)
    def save_pretrained_merged(
        self,
        save_directory: str | Path,
        tokenizer: Any = None,
        save_method: str = "merged_16bit",
        push_to_hub: bool = False,
        token: str | None = None,
        *,
        private: bool | None = None,
        max_shard_size: int | str = saving.SHARD_BYTES,
        verify: bool = False,
    ) -> None:
        """Write a full checkpoint with the adapter merged in; see `jaxtune.saving`.

        `max_shard_size` is in bytes, or "5GB". The others as in `save_pretrained`.
        """
        if verify:
            check_on_one_host(self, "what verify=True compares")
        destination = _destination(save_directory, push_to_hub, token, private)
        size = size_in_bytes(max_shard_size)

        def save(model: CausalLM, folder: Path) -> None:
            saving.save_pretrained_merged(
                model, folder, tokenizer, save_method=save_method, max_shard_bytes=size
            )
            if verify:
                verify_saved(model, folder)

        whole = save_method != "lora"
        hub_upload.saved_and_pushed(self, destination, save_directory, save, whole=whole)

    @explained(NAMED_OTHERWISE, NEUTRAL)
    def save_pretrained_gguf(
        self,
        save_directory: str | Path,
        tokenizer: Any = None,
        quantization_method: str | Sequence[str] = "fast_quantized",
        *,
        push_to_hub: bool = False,
        token: str | None = None,
        private: bool | None = None,
    ) -> list[Path]:
        """Write GGUF files, the adapter merged in; see `jaxtune.gguf_export`.

        `push_to_hub`, `token` and `private` as in `save_pretrained`.
        """
        destination = _destination(save_directory, push_to_hub, token, private)
        files: list[Path] = []

        def save(model: CausalLM, folder: Path) -> None:
            files.extend(save_pretrained_gguf(model, folder, tokenizer, quantization_method))

        hub_upload.saved_and_pushed(self, destination, save_directory, save, whole=True)
        return files

    @explained(NAMED_OTHERWISE, NEUTRAL)
    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> Any:
        """Upload what `save_pretrained` writes; see `jaxtune.hub_upload`."""
        return hub_upload.push_adapter(
            self,
            hub_upload.Destination(
                repo_id=repo_id,
                token=token,
                private=private,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            ),
        )

    @explained(NAMED_OTHERWISE, NEUTRAL)
    def push_to_hub_merged(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these.
        self,
        repo_id: str,
        tokenizer: Any = None,
        save_method: str = "merged_16bit",
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        max_shard_size: int | str = saving.SHARD_BYTES,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> Any:
        """Upload what `save_pretrained_merged` writes; see `jaxtune.hub_upload`."""
        return hub_upload.push_merged(
            self,
            hub_upload.Destination(
                repo_id=repo_id,
                token=token,
                private=private,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            ),
            tokenizer,
            save_method,
            size_in_bytes(max_shard_size),
        )

    @explained(NAMED_OTHERWISE, NEUTRAL)
    def push_to_hub_gguf(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these.
        self,
        repo_id: str,
        tokenizer: Any = None,
        quantization_method: str | Sequence[str] = "fast_quantized",
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        commit_description: str | None = None,
    ) -> Any:
        """Upload what `save_pretrained_gguf` writes; see `jaxtune.hub_upload`."""
        return hub_upload.push_gguf(
            self,
            hub_upload.Destination(
                repo_id=repo_id,
                token=token,
                private=private,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            ),
            tokenizer,
            quantization_method,
        )

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line on trainable and all parameters, once for all processes."""
        if processes.is_first():
            print(trainable_line(self))  # noqa: T201  PEFT's method of this name prints.


def _destination(
    folder: str | Path, push_to_hub: bool, token: str | None, private: bool | None
) -> hub_upload.Destination | None:
    """Where a folder that is saved goes besides; None: nowhere."""
    if not push_to_hub:
        return None
    name = hub_upload.repository_of(folder)
    return hub_upload.Destination(repo_id=name, token=token, private=private)


@functools.cache
def with_verbs(family: type[CausalLM]) -> type[LanguageModel]:
    """The family's class with the verbs of `LanguageModel`; an instance is one of both.

    The layers below must not import generation and saving, and a family file must stay free of
    them; the two are joined here, once for each family.

    Args:
      family: A class of `jaxtune.models.registry.FAMILIES`.

    Returns:
      A subclass of both, under the family's name.
    """
    return type(
        family.__name__,
        (LanguageModel, family),
        {"__doc__": family.__doc__, "__module__": family.__module__},
    )
