"""`FastLanguageModel`: loading and adapting a model in two calls; composes, computes nothing."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert import AdapterConfig, read_adapter
from jaxtune.adapters.inject import PROJECTIONS, inject_lora, match_projections
from jaxtune.adapters.peft_form import attach_adapter, lora_specs
from jaxtune.errors import NotBuiltYetError
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.models.carried import Carried
from jaxtune.models.loading import load_model, read_hf_config, resolve_folder
from jaxtune.models.precision import resolve_dtype
from jaxtune.models.registry import find_family
from jaxtune.models.run import Remat

REMAT: dict[bool | str, Remat] = {"auto": "full", True: "full", False: "none"}


class FastLanguageModel:
    """Unsloth's entry points."""

    @staticmethod
    def from_pretrained(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these names.
        model_name: str,
        max_seq_length: int | None = 2048,
        dtype: Any = None,
        load_in_4bit: bool = True,
        token: str | None = None,
        revision: str | None = None,
        use_gradient_checkpointing: bool | str = "auto",
        kernels: str = "auto",
        local_files_only: bool = False,
    ) -> tuple[LanguageModel, Any]:
        """Load a model and its tokenizer from a folder or a hub id.

        Args:
          model_name: Local folder, hub id, or the folder of a PEFT adapter (its base is loaded and
            the adapter attached, trainable).
          max_seq_length: Longest row in tokens; None: the model's range.
          dtype: Of weights and activations; None: bfloat16 where the device has it, float16 on
            older GPUs, float32 on a CPU.
          load_in_4bit: Not built yet; pass False.
          token: Hub access token.
          revision: Hub branch, tag or commit.
          use_gradient_checkpointing: "auto" and True compute each layer again in the backward
            pass, False keeps its intermediate results.
          kernels: Backend of every op: "auto" or "xla".
          local_files_only: Use the hub's cache and no network.

        Returns:
          (model, tokenizer); the tokenizer is None, with a warning, if the folder has none.

        Raises:
          NotBuiltYetError: `load_in_4bit=True`.
          UnsupportedModelError: The configuration asks for maths not computed here.
          ValueError: `max_seq_length` is over the model's range.
        """
        if load_in_4bit:
            raise NotBuiltYetError(
                "load_in_4bit=True is not built yet; pass load_in_4bit=False for 16-bit LoRA."
            )
        remat = _remat(use_gradient_checkpointing)
        where = {"token": token, "revision": revision, "local_files_only": local_files_only}
        folder = resolve_folder(model_name, **where)
        adapter = None
        if (folder / "adapter_config.json").is_file():
            adapter = read_adapter(folder)
            model_name = adapter.config.base_model_name_or_path or ""
            folder = resolve_folder(model_name, **where)
        hf_config = read_hf_config(folder)
        model_class = with_verbs(find_family(hf_config.get("model_type")))
        config = model_class.config_from_hf(hf_config)
        max_seq_length = _within_range(max_seq_length, config.max_position_embeddings)
        model = load_model(folder, model_class, config, dtype=resolve_dtype(dtype))
        model.model.remat = remat
        model.model.kernels = kernels
        tokenizer = _load_tokenizer(folder)
        model.carried = Carried(
            tokenizer=tokenizer,
            name_or_path=model_name,
            hf_config=hf_config,
            max_seq_length=max_seq_length,
        )
        if adapter is not None:
            attach_adapter(model, adapter)
            model.carried.adapter = adapter.config
        return model, tokenizer

    @staticmethod
    def get_peft_model(  # noqa: PLR0913  Unsloth's face: scripts written for it pass these names.
        model: LanguageModel,
        r: int = 16,
        target_modules: Sequence[str] = PROJECTIONS,
        lora_alpha: int | float = 16,
        lora_dropout: int | float = 0.0,
        bias: str = "none",
        use_gradient_checkpointing: bool | str = "auto",
        random_state: int = 3407,
        use_rslora: bool = False,
    ) -> LanguageModel:
        """Freeze the model and add a LoRA adapter that changes nothing yet.

        y = W x + s B A drop(x), s = lora_alpha / r (with `use_rslora`, / sqrt(r)).

        Args:
          model: From `from_pretrained`; changed in place.
          r: Rank.
          target_modules: Names of the projections to adapt.
          lora_alpha: Numerator of the scale.
          lora_dropout: Probability of zeroing an input of A.
          bias: "none"; the others are not built yet.
          use_gradient_checkpointing: As in `from_pretrained`.
          random_state: Seed of A.
          use_rslora: Scale by 1 / sqrt(r).

        Returns:
          The same model.

        Raises:
          TypeError: The model has an adapter with other settings.
          ValueError: A value is out of range, or a target matches nothing.
        """
        if bias != "none":
            raise NotBuiltYetError(f"bias={bias!r} is not built yet; pass bias='none'.")
        paths = match_projections(model, target_modules)
        adapter = AdapterConfig(
            base_model_name_or_path=model.carried.name_or_path,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=[path.rsplit(".", 1)[-1] for path in paths],
            use_rslora=use_rslora,
        )
        if model.carried.adapter is not None:
            if model.carried.adapter == adapter:
                return model
            raise TypeError(
                "a model takes one adapter; this one has an adapter with other settings. "
                "Load the base again, or pass the same settings."
            )
        layers = model.config.num_hidden_layers
        inject_lora(model, lora_specs(adapter, paths, layers), seed=random_state)
        model.carried.adapter = adapter
        model.model.remat = _remat(use_gradient_checkpointing)
        return model

    @staticmethod
    def for_inference(model: LanguageModel) -> LanguageModel:
        """Return the model: it has no modes, and generates at any moment of a training run."""
        return model

    @staticmethod
    def for_training(model: LanguageModel) -> LanguageModel:
        """Return the model: it has no modes."""
        return model


def _remat(choice: bool | str) -> Remat:
    if choice not in REMAT:
        raise NotBuiltYetError(
            "`use_gradient_checkpointing` must be 'auto', True or False in this version; got "
            f"{choice!r}, which is not built yet."
        )
    return REMAT[choice]


def _within_range(max_seq_length: int | None, model_range: int) -> int:
    if max_seq_length is None:
        return model_range
    if max_seq_length < 1:
        raise ValueError(f"`max_seq_length` must be >= 1 token; got {max_seq_length}.")
    if max_seq_length > model_range:
        raise NotBuiltYetError(
            f"`max_seq_length` must be within the model's range of {model_range} tokens; got "
            f"{max_seq_length}, and stretching the range is not built yet. Pass a smaller one, "
            "or None."
        )
    return max_seq_length


def _load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; None with a warning if it has no tokenizer files."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in files):
        warnings.warn(
            f"{folder} holds no tokenizer files; the model is loaded with tokenizer=None. "
            "Pass tokenizer= to the trainer.",
            stacklevel=3,
        )
        return None
    return AutoTokenizer.from_pretrained(folder)
