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
from jaxtune.verification import verify_saved


class LanguageModel(CausalLM):
    """A causal language model with what a user does to it, on top of the maths."""

    generate = generate

    def save_pretrained(self, save_directory: str | Path, *, verify: bool = False) -> None:
        """Write what was trained, for peft or transformers; see `jaxtune.saving`.

        With `verify`, what was written is read back by others' code and compared: see
        `jaxtune.verification`.
        """
        if verify:
            check_on_one_host(self, "what verify=True compares")
        saving.save_pretrained(self, save_directory)
        if verify:
            verify_saved(self, Path(save_directory))

    def save_pretrained_merged(
        self,
        save_directory: str | Path,
        tokenizer: Any = None,
        save_method: str = "merged_16bit",
        *,
        max_shard_bytes: int = saving.SHARD_BYTES,
        verify: bool = False,
    ) -> None:
        """Write a full checkpoint with the adapter merged in; see `jaxtune.saving`.

        `verify` as in `save_pretrained`.
        """
        if verify:
            check_on_one_host(self, "what verify=True compares")
        saving.save_pretrained_merged(
            self,
            save_directory,
            tokenizer,
            save_method=save_method,
            max_shard_bytes=max_shard_bytes,
        )
        if verify:
            verify_saved(self, Path(save_directory))

    def save_pretrained_gguf(
        self,
        save_directory: str | Path,
        tokenizer: Any = None,
        quantization_method: str | Sequence[str] = "fast_quantized",
    ) -> list[Path]:
        """Write GGUF files, the adapter merged in; see `jaxtune.gguf_export`."""
        return save_pretrained_gguf(self, save_directory, tokenizer, quantization_method)

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

    def push_to_hub_merged(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these.
        self,
        repo_id: str,
        tokenizer: Any = None,
        save_method: str = "merged_16bit",
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
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
        )

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
