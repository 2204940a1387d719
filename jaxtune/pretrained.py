"""From a name to a model with its tokenizer: configuration first, weights last."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from convert import Adapter, read_adapter
from jaxtune.adapters.attach import attach_adapter
from jaxtune.config import DecoderConfig
from jaxtune.data.pad_token import with_pad_token
from jaxtune.language_model import LanguageModel, with_verbs
from jaxtune.models.build import train_all
from jaxtune.models.carried import Carried
from jaxtune.models.configuration import (
    described_change,
    hf_form,
    read_config_json,
    stretched,
    text_part,
    with_rope_scaling,
)
from jaxtune.models.hub import resolve_folder
from jaxtune.models.loading import load_model
from jaxtune.models.precision import resolve_dtype
from jaxtune.models.registry import find_family


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from.

    Attributes:
      name: Hub id or folder, of a model or of a PEFT adapter.
      token: Hub access token; never shown.
      revision: Hub branch, tag or commit.
      local_files_only: Use the hub's cache and no network.
    """

    name: str
    token: str | None = dataclasses.field(default=None, repr=False)
    revision: str | None = None
    local_files_only: bool = False

    def folder(self) -> Path:
        """The folder of its files, downloaded if need be."""
        return resolve_folder(
            self.name,
            token=self.token,
            revision=self.revision,
            local_files_only=self.local_files_only,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """How long rows may be.

    Attributes:
      max_seq_length: Longest row in tokens; None: the model's range.
      rope_scaling: Replaces the checkpoint's, in config.json's terms; None keeps it.
    """

    max_seq_length: int | None
    rope_scaling: Mapping[str, Any] | None = None


def load_pretrained(
    source: Source,
    range_: Range,
    *,
    dtype: Any = None,
    fix_tokenizer: bool = True,
    full_finetuning: bool = False,
) -> tuple[LanguageModel, Any]:
    """Load a model and its tokenizer; everything that can be wrong is looked at before a weight.

    Args:
      source: Of the model, or of an adapter, whose base is loaded and which is attached trainable.
      range_: Row length and RoPE scaling.
      dtype: Of weights and activations; see `resolve_dtype`.
      fix_tokenizer: Give the tokenizer a pad token of its own where it has none.
      full_finetuning: Train every weight, in float32.

    Returns:
      (model, tokenizer or None).
    """
    folder, adapter = source.folder(), None
    if (folder / "adapter_config.json").is_file():
        adapter = read_adapter(folder)
        _check_adapter_use(source, adapter, full_finetuning)
        base = adapter.config.base_model_name_or_path or ""
        source = dataclasses.replace(source, name=base, revision=None)
        adapter_folder, folder = folder, source.folder()
    else:
        adapter_folder = folder
    original = read_config_json(folder)
    model_class = with_verbs(find_family(original.get("model_type")))
    config_json, hf, config = _configuration(original, model_class, range_)
    compute_dtype = resolve_dtype(dtype)
    tokenizer = _load_tokenizer((adapter_folder, folder), hf, config.vocab_size, fix_tokenizer)
    model = load_model(folder, model_class, config, dtype=compute_dtype)
    model.carried = Carried(
        tokenizer=tokenizer,
        name_or_path=source.name,
        hf_config=hf,
        config_json=config_json,
        folder=folder,
        base_changes={} if config_json is original else described_change(hf_form(original), hf),
        max_seq_length=range_.max_seq_length or config.max_position_embeddings,
    )
    if full_finetuning:
        train_all(model)
        model.carried.full_finetuning = True
    if adapter is not None:
        model.carried.adapter = attach_adapter(model, adapter)
    return model, tokenizer


def _check_adapter_use(source: Source, adapter: Adapter, full_finetuning: bool) -> None:
    if not adapter.config.base_model_name_or_path:
        raise ValueError(
            "an adapter must name its base model to be loaded alone; base_model_name_or_path in "
            f"adapter_config.json of {source.name} is empty. Write the base's name or folder there."
        )
    if full_finetuning:
        raise ValueError(
            "full fine-tuning trains the weights themselves; got the adapter "
            f"{source.name}. Merge it first (python -m convert merged) and load the result."
        )


def _configuration(
    original: dict[str, Any], model_class: type[LanguageModel], range_: Range
) -> tuple[dict[str, Any], dict[str, Any], DecoderConfig]:
    """config.json as this run has it, in transformers' form, and ours."""
    config_json = original
    if range_.rope_scaling is not None:
        config_json = with_rope_scaling(config_json, range_.rope_scaling)
    hf = hf_form(config_json)
    config = model_class.config_from_hf(hf)
    wanted = range_.max_seq_length
    if wanted is None or wanted <= config.max_position_embeddings:
        return config_json, hf, config
    if range_.rope_scaling is None:
        config_json, line = stretched(config_json, hf, wanted)
        tqdm.write(line)
    else:
        # The caller chose the scaling; only the limit follows.
        config_json = json.loads(json.dumps(config_json))
        text_part(config_json)["max_position_embeddings"] = wanted
    hf = hf_form(config_json)
    return config_json, hf, model_class.config_from_hf(hf)


def _load_tokenizer(
    folders: tuple[Path, ...], hf: Mapping[str, Any], vocab_size: int, fix: bool
) -> Any:
    """The first folder's tokenizer that there is; None with a warning if there is none."""
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    found = (f for f in folders if any((f / name).is_file() for name in files))
    folder = next(found, None)
    if folder is None:
        warnings.warn(
            f"{folders[-1]} holds no tokenizer files; the model is loaded with tokenizer=None. "
            "Pass tokenizer= to the trainer.",
            stacklevel=4,
        )
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not fix:
        return tokenizer
    stops = text_part(hf).get("eos_token_id")
    stops = [stops] if isinstance(stops, int) else list(stops or ())
    tokenizer, line = with_pad_token(tokenizer, vocab_size, eos_token_ids=stops)
    if line is not None:
        tqdm.write(line)
    return tokenizer
