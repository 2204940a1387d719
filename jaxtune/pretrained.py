"""From a name to a model with its tokenizer: configuration first, weights last."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from convert import (
    Adapter,
    quantization_of,
    read_adapter,
    read_json_object,
    without_quantization,
)
from jaxtune.adapters.attach import attach_adapter
from jaxtune.config import DecoderConfig
from jaxtune.console import say_above_bars
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
    with_range,
    with_rope_scaling,
)
from jaxtune.models.hub import resolve_folder
from jaxtune.models.loading import load_model
from jaxtune.models.placement import devices_of
from jaxtune.models.precision import resolve_dtype
from jaxtune.models.registry import find_family

ADAPTER_FILE = "adapter_config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model comes from.

    Attributes:
      name: Hub id or folder, of a model or of a PEFT adapter.
      token: Hub access token; never shown.
      revision: Hub branch, tag or commit.
      local_files_only: Use the hub's cache and no network.
      base: Hub id or folder to put an adapter on; None: the one that it names.
    """

    name: str
    token: str | None = dataclasses.field(default=None, repr=False)
    revision: str | None = None
    local_files_only: bool = False
    base: str | None = None

    def folder(self, before_weights: Callable[[Path], object]) -> Path:
        """The folder of its files, downloaded if need be.

        Args:
          before_weights: Looks at the small files; an error from it stops the download.

        Returns:
          The folder.
        """
        return resolve_folder(
            self.name,
            token=self.token,
            revision=self.revision,
            local_files_only=self.local_files_only,
            before_weights=before_weights,
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
    mesh: Mesh | None = None,
    fix_tokenizer: bool = True,
    load_in_4bit: bool = False,
    full_finetuning: bool = False,
) -> tuple[LanguageModel, Any]:
    """Load a model and its tokenizer; everything that can be wrong is looked at before a weight.

    Args:
      source: Of the model, or of an adapter, whose base is loaded and which is attached trainable.
      range_: Row length and RoPE scaling.
      dtype: Of weights and activations; see `resolve_dtype`.
      mesh: Devices that each get the weights; None: one device.
      fix_tokenizer: Give the tokenizer a pad token of its own where it has none.
      load_in_4bit: Hold the layers' projections in 4 bits; see `load_model`.
      full_finetuning: Train every weight, in float32.

    Returns:
      (model, tokenizer or None).
    """
    compute_dtype = resolve_dtype(dtype)
    look = functools.partial(_look, range_)
    folder, adapter = source.folder(look), None
    adapter_folder = folder
    if (folder / ADAPTER_FILE).is_file():
        adapter = read_adapter(folder)
        _check_adapter_use(source, adapter, full_finetuning)
        base = source.base or adapter.config.base_model_name_or_path or ""
        source = dataclasses.replace(source, name=base, revision=None)
        folder = source.folder(look)
    setting = _settle(folder, range_)
    if setting.line is not None:
        say_above_bars(setting.line)
    tokenizer = _load_tokenizer((adapter_folder, folder), setting, fix_tokenizer)
    if setting.quantized and not load_in_4bit:
        say_above_bars(f"jaxtune: the 4-bit weights of {source.name} are dequantised.")
    model = load_model(
        folder,
        setting.model_class,
        setting.config,
        dtype=compute_dtype,
        load_in_4bit=load_in_4bit,
        mesh=mesh,
    )
    model.carried = Carried(
        tokenizer=tokenizer,
        name_or_path=source.name,
        hf_config=setting.hf,
        generation_config=_generation_config(folder),
        config_json=setting.config_json,
        folder=folder,
        base_changes=setting.changes,
        mesh=mesh,
        max_seq_length=range_.max_seq_length or setting.config.max_position_embeddings,
    )
    model.model.spread = devices_of(mesh) > 1
    if full_finetuning:
        train_all(model)
        model.carried.full_finetuning = True
    if adapter is not None:
        model.carried.adapter = attach_adapter(model, adapter)
    return model, tokenizer


def _check_adapter_use(source: Source, adapter: Adapter, full_finetuning: bool) -> None:
    if not (source.base or adapter.config.base_model_name_or_path):
        raise ValueError(
            "an adapter must name its base model to be loaded alone; base_model_name_or_path in "
            f"adapter_config.json of {source.name} is empty. Write the base's name or folder there."
        )
    if full_finetuning:
        raise ValueError(
            "full fine-tuning trains the weights themselves; got the adapter "
            f"{source.name}. Merge it first (python -m convert merged) and load the result."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Setting:
    """What a folder's config.json says, with this run's row length.

    Attributes:
      model_class: The family's, with its verbs.
      config_json: The file's object, changed where the run asks for it.
      hf: The same in transformers' form.
      config: The same in ours.
      changes: Values of `hf` that are not the file's.
      line: What to tell the user of a stretched range.
      quantized: The folder holds 4-bit weights.
    """

    model_class: type[LanguageModel]
    config_json: dict[str, Any]
    hf: dict[str, Any]
    config: DecoderConfig
    changes: dict[str, Any]
    line: str | None
    quantized: bool


def _look(range_: Range, folder: Path) -> None:
    """Refuse a model that cannot be computed before its weights are downloaded."""
    if not (folder / ADAPTER_FILE).is_file():
        _settle(folder, range_)


def _settle(folder: Path, range_: Range) -> _Setting:
    """Read config.json, change what the row length asks for, and check that it is served."""
    original = read_config_json(folder)
    quantized = quantization_of(original) is not None
    # How the files hold the weights is not part of the maths, nor of what is written from here.
    original = without_quantization(original)
    model_class = with_verbs(find_family(original.get("model_type")))
    config_json, wanted, line = original, range_.max_seq_length, None
    if range_.rope_scaling is not None:
        config_json = with_rope_scaling(config_json, range_.rope_scaling)
    before = hf = hf_form(config_json)
    model_range = model_class.config_from_hf(hf).max_position_embeddings
    if wanted is not None and wanted > model_range:
        if range_.rope_scaling is None:
            config_json, line = stretched(config_json, hf, wanted)
        else:  # the caller chose the scaling; only the limit follows
            config_json = with_range(config_json, wanted)
        hf = hf_form(config_json)
    if range_.rope_scaling is not None:
        before = hf_form(original)
    return _Setting(
        model_class=model_class,
        config_json=config_json,
        hf=hf,
        config=model_class.config_from_hf(hf),
        changes=described_change(before, hf),
        line=line,
        quantized=quantized,
    )


def _load_tokenizer(folders: tuple[Path, ...], setting: _Setting, fix: bool) -> Any:
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
    generation = _generation_config(folders[-1])
    stops = {*_stops(text_part(setting.hf)), *_stops(generation)}
    tokenizer, line = with_pad_token(tokenizer, setting.config.vocab_size, eos_token_ids=stops)
    if line is not None:
        say_above_bars(f"jaxtune: {line}.")
    return tokenizer


def _generation_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's defaults of generation; empty without the file."""
    file = folder / "generation_config.json"
    return read_json_object(file) if file.is_file() else {}


def _stops(settings: Mapping[str, Any]) -> list[int]:
    """The ids that end a text, of config.json or generation_config.json."""
    ids = settings.get("eos_token_id")
    return [ids] if isinstance(ids, int) else list(ids or ())
