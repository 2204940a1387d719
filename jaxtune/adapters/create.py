"""A new adapter: what a user asks for in PEFT's terms, put on a model."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

from convert import AdapterConfig, is_literal, names_module
from jaxtune.adapters.inject import inject_lora
from jaxtune.adapters.modules import Place, linear_places
from jaxtune.adapters.targets import (
    WHOLE,
    Number,
    check_patterns,
    select_modules,
    select_whole,
    value_of,
)
from jaxtune.adapters.whole import check_biases, check_whole, train_biases, train_copies
from jaxtune.layers.linear import LoraSpec
from jaxtune.models.decoder import CausalLM


def create_adapter(model: CausalLM, request: AdapterConfig, *, seed: int) -> AdapterConfig:
    """Freeze a model and add the adapter that `request` describes; nothing changes on an error.

    Args:
      model: Changed in place.
      request: In PEFT's terms; `target_modules` may be a list, "all-linear" or an expression.
      seed: Of the matrices that are drawn.

    Returns:
      The configuration to be written: target modules as a list, patterns without expressions.

    Raises:
      ValueError: A name, pattern or layer index selects nothing.
    """
    request = with_whole_targets(request)
    names = select_modules(
        model,
        request.target_modules,
        layers_to_transform=request.layers_to_transform,
        layers_pattern=request.layers_pattern,
    )
    whole = select_whole(model, request.modules_to_save or ())
    check_whole(whole)
    _check_new_rows(model, whole)
    trained_whole = {name for place in whole for name in place.names}
    # As in PEFT, what is trained whole gets no LoRA.
    names = [name for name in names if name not in trained_whole]
    if not names:
        raise ValueError(
            "an adapter must adapt at least one projection by LoRA; got "
            f"target_modules={request.target_modules!r}, all of them in `modules_to_save`. "
            "Leave one of the two out."
        )
    for option in ("rank_pattern", "alpha_pattern"):
        check_patterns(option, getattr(request, option), names)
    specs = lora_specs(model, request, names)
    check_biases(model, request.bias, specs)
    inject_lora(model, specs, seed=seed, init_lora_weights=request.init_lora_weights)
    train_copies(model, whole)
    if request.bias != "none" and not train_biases(model, request.bias):
        warnings.warn(f"bias={request.bias!r}: no such bias in this model", stacklevel=4)
    return _written(model, request, names, whole)


def _check_new_rows(model: CausalLM, whole: Sequence[Place]) -> None:
    """Refuse an adapter that would lack the rows of tokens that were added."""
    trained = {place.path[-1] for place in whole}
    wanted = ["embed_tokens", *([] if model.config.tie_word_embeddings else ["lm_head"])]
    if model.carried.vocabulary is not None and not trained.issuperset(wanted):
        raise ValueError(
            "an adapter over added tokens must hold their rows; got `modules_to_save` without "
            f"{[name for name in wanted if name not in trained]}. Pass modules_to_save={wanted}."
        )


def with_whole_targets(request: AdapterConfig) -> AdapterConfig:
    """Move `embed_tokens` and `lm_head` from the targets to `modules_to_save`.

    Unsloth's recipe for continued pretraining names them among the targets and means full training.
    """
    if isinstance(request.target_modules, str):
        return request
    moved = [name for name in request.target_modules if name in WHOLE]
    if not moved:
        return request
    saved = list(request.modules_to_save or ())
    return dataclasses.replace(
        request,
        target_modules=[name for name in request.target_modules if name not in WHOLE],
        modules_to_save=[*saved, *(name for name in moved if name not in saved)],
    )


def lora_specs(
    model: CausalLM, request: AdapterConfig, names: Sequence[str]
) -> dict[str, LoraSpec]:
    """Ranks and scales of each projection, layer by layer: s = alpha / r, with rsLoRA / sqrt(r).

    Args:
      model: For its projections.
      request: Ranks, alphas and their patterns.
      names: Full names of the adapted modules.

    Returns:
      {path inside a layer: its specification}, adapted projections only.
    """
    selected = frozenset(names)
    specs = {}
    for place in linear_places(model):
        ranks, scales = [], []
        for name in place.names:
            rank = _rank(request, name) if name in selected else 0
            ranks.append(rank)
            root = rank**0.5 if request.use_rslora else rank
            scales.append(_alpha(request, name) / root if rank else 0.0)
        if any(ranks):
            specs[place.in_layer] = LoraSpec(
                ranks=tuple(ranks),
                scales=tuple(scales),
                dropout=request.lora_dropout,
                use_dora=request.use_dora,
            )
    return specs


def _rank(request: AdapterConfig, name: str) -> int:
    value = value_of(request.rank_pattern, name)
    return request.r if value is None else value


def _alpha(request: AdapterConfig, name: str) -> int | float:
    value = value_of(request.alpha_pattern, name)
    return request.lora_alpha if value is None else value


def _written(
    model: CausalLM, request: AdapterConfig, names: Sequence[str], whole: Sequence[Place]
) -> AdapterConfig:
    """The request as adapter_config.json says it: lists of names in place of expressions."""
    embedding = next((p.pattern for p in whole if p.path[-1] == "embed_tokens"), None)
    tied = model.config.tie_word_embeddings and embedding is not None
    saved = list(request.modules_to_save or ())
    if tied:  # as PEFT writes `ensure_weight_tying`: the embedding's full name, and no head
        saved = [name for name in saved if name not in ("lm_head", embedding)] + [embedding]
    return dataclasses.replace(
        with_listed_targets(model, request, names),
        rank_pattern=_plain_pattern(request.rank_pattern, names),
        alpha_pattern=_plain_pattern(request.alpha_pattern, names),
        modules_to_save=saved or None,
        ensure_weight_tying=tied,
    )


def with_listed_targets(
    model: CausalLM, config: AdapterConfig, names: Sequence[str]
) -> AdapterConfig:
    """The same configuration with its target modules as a list: short names where they will do.

    Args:
      model: The model.
      config: With targets of any form.
      names: Full names of the modules that they select.

    Returns:
      The configuration.
    """
    short, layers = _short_targets(model, names)
    return dataclasses.replace(
        config,
        target_modules=short or list(names),
        layers_to_transform=layers,
        layers_pattern=config.layers_pattern if layers is not None else None,
    )


def _short_targets(
    model: CausalLM, names: Sequence[str]
) -> tuple[list[str] | None, list[int] | None]:
    """Last parts of the names and the layers, where PEFT's rules make the same selection of them.

    Not in a model with other parts: the short names could hit those too.
    """
    selected = frozenset(names)
    kept: dict[Place, tuple[int, ...]] = {}
    rest = []
    for place in linear_places(model):
        layers = tuple(i for i, name in enumerate(place.names) if name in selected)
        if layers:
            kept[place] = layers
        else:
            rest.append(place)
    short = [place.path[-1] for place in kept]
    clash = any(names_module(name, place.pattern) for name in short for place in rest)
    if model.other_parts or clash or len(set(kept.values())) != 1:
        return None, None
    (layers,) = set(kept.values())
    everywhere = len(layers) == model.config.num_hidden_layers
    return short, None if everywhere else list(layers)


def _plain_pattern(patterns: Mapping[str, Number], names: Sequence[str]) -> dict[str, Number]:
    """The same values under plain names: a file's reader must not have to run expressions."""
    if all(map(is_literal, patterns)):
        return dict(patterns)
    values = {name: value_of(patterns, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
