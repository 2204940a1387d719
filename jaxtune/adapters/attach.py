"""An adapter that was read from PEFT's files, put on a model."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from convert import Adapter, AdapterConfig, is_literal
from jaxtune.adapters.create import with_listed_targets
from jaxtune.adapters.inject import MAGNITUDE, PREFIX, attach_lora
from jaxtune.adapters.modules import Place, linear_places, places
from jaxtune.adapters.whole import (
    HEAD,
    check_biases,
    check_whole,
    train_biases,
    train_copies,
    untie_head,
)
from jaxtune.errors import IncompatibleCheckpointError
from jaxtune.layers.linear import LoraSpec
from jaxtune.models.build import freeze
from jaxtune.models.decoder import CausalLM
from jaxtune.models.vocabulary import grow_vocabulary
from jaxtune.notes import tell

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The tensors of an adapter by the modules that they belong to.

    Attributes:
      branches: LoRA stacks.
      weights: Weights trained whole, by the module's path.
      biases: Trained biases, likewise.
      apart: Embedding and head of a tied model are two matrices from here on.
    """

    branches: list[tuple[Place, LoraSpec, np.ndarray, np.ndarray, np.ndarray | None]]
    weights: dict[Path, np.ndarray]
    biases: dict[Path, np.ndarray]
    apart: bool


def attach_adapter(model: CausalLM, adapter: Adapter) -> AdapterConfig:
    """Attach an adapter read from PEFT's files, trainable; nothing changes on an error.

    Each layer's rank is its tensor's own; layers without a tensor get rank 0. A tied model whose
    adapter trains embedding and head apart, as PEFT does by default, is no longer tied.

    Args:
      model: The base, changed in place.
      adapter: From `convert.read_adapter`.

    Returns:
      Its configuration, to be written again: target modules as a list, patterns as plain names.

    Raises:
      IncompatibleCheckpointError: A tensor has no place in the model, or another shape.
    """
    _make_room(model, adapter)
    parts = _take_apart(model, adapter)
    check_whole([place for place in places(model) if place.path in parts.weights])
    if parts.biases:
        specs = {place.in_layer: spec for place, spec, *_ in parts.branches}
        check_biases(model, adapter.config.bias, specs)
    freeze(model)
    for place, spec, a, b, magnitude in parts.branches:
        lengths = None if magnitude is None else jnp.asarray(magnitude)
        attach_lora(place, spec, jnp.asarray(a), jnp.asarray(b), lengths)
    if parts.apart:
        untie_head(model)
    saved = [place for place in places(model) if place.path in parts.weights]
    train_copies(model, saved)
    for place in saved:
        leaf = place.module.trained_weight
        leaf.set_value(jnp.array(parts.weights[place.path], jnp.float32))
    if parts.biases:
        train_biases(model, adapter.config.bias)
    for place in places(model):
        if place.path in parts.biases:
            place.module.bias.set_value(jnp.array(parts.biases[place.path], jnp.float32))
    return _plain_config(model, adapter.config, parts)


def _make_room(model: CausalLM, adapter: Adapter) -> None:
    """Give the base rows for tokens that the adapter's embedding or head has beyond it."""
    held = [adapter.tensors.get(name) for name in (_embedding_name(model), HEAD)]
    width = model.config.hidden_size
    sizes = {len(rows) for rows in held if rows is not None and rows.shape[1:] == (width,)}
    size = max(sizes, default=0)
    if size > model.config.vocab_size:
        tell(
            f"jaxtune: the adapter's vocabulary has {size:,} rows, the base's "
            f"{model.config.vocab_size:,}; tokens were added to it."
        )
        grow_vocabulary(model, size)


def _plain_config(model: CausalLM, config: AdapterConfig, parts: _Parts) -> AdapterConfig:
    """The configuration without regular expressions, which nobody should have to run."""
    ranks = {
        name: rank
        for place, spec, *_ in parts.branches
        for name, rank in zip(place.names, spec.ranks, strict=True)
        if rank
    }
    if isinstance(config.target_modules, str):
        config = with_listed_targets(model, config, list(ranks))
    if not all(map(is_literal, config.rank_pattern)):
        own = {name: rank for name, rank in ranks.items() if rank != config.r}
        config = dataclasses.replace(config, rank_pattern=own)
    return config


def _take_apart(model: CausalLM, adapter: Adapter) -> _Parts:
    """Sort the tensors by module, and refuse what has no place or another shape."""
    left, tied = dict(adapter.tensors), model.config.tie_word_embeddings
    embedding = _embedding_name(model)
    apart = tied and _trained_apart(
        left.get(embedding), left.get(HEAD), adapter.config.ensure_weight_tying
    )
    head = left.pop(HEAD, None) if tied else None
    if head is not None and not apart:
        left.setdefault(embedding, head)  # one matrix, which a file may hold under either name
    branches = []
    for place in linear_places(model):
        pairs = _take_pairs(left, place)
        if any(pair is not None for pair in pairs):
            magnitude = _take_magnitudes(left, place) if adapter.config.use_dora else None
            branches.append((place, *_stacks(adapter.config, place, pairs), magnitude))
    weights, biases = {}, {}
    for place in places(model):
        shape = place.module.weight.get_value().shape
        weight = _take_stack(left, place, (".weight",), shape)
        bias = _take_stack(left, place, (".base_layer.bias", ".bias"), shape[:-1])
        weights |= {} if weight is None else {place.path: weight}
        biases |= {} if bias is None else {place.path: bias}
    if apart and head is not None:
        weights["lm_head",] = head
    if left:
        raise IncompatibleCheckpointError(
            "every tensor of an adapter must belong to a module of the model; no place for "
            f"{sorted(left)[:3]}. Check that the adapter was made for this base model."
        )
    return _Parts(branches, weights, biases, apart)


def _embedding_name(model: CausalLM) -> str:
    (embedding,) = (place for place in places(model) if place.path[-1] == "embed_tokens")
    return f"{PREFIX}{embedding.pattern}.weight"


def _trained_apart(
    embedding: np.ndarray | None, head: np.ndarray | None, ensure_weight_tying: bool
) -> bool:
    """Whether an adapter of a tied model leaves embedding and head as two matrices.

    By what it says, not by what they hold: PEFT's two copies are equal before they are trained.
    """
    if ensure_weight_tying:
        return embedding is not None and head is not None and not np.array_equal(embedding, head)
    return embedding is not None or head is not None


def _take_stack(
    tensors: dict[str, np.ndarray], place: Place, suffixes: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray | None:
    """Remove a module's tensors of one suffix, all layers of them, and stack them."""
    for suffix in suffixes:
        names = [f"{PREFIX}{name}{suffix}" for name in place.names]
        held = [name for name in names if name in tensors]
        if not held:
            continue
        wanted = shape[1:] if place.stacked else shape
        wrong = [name for name in held if tensors[name].shape != wanted]
        if wrong or len(held) < len(names):
            raise IncompatibleCheckpointError(
                f"an adapter must hold `{place.pattern}{suffix}` with shape {wanted} in all "
                f"{len(names)} places; got {len(held)}, {len(wrong)} of them of another shape. "
                "Check that the adapter was made for this base model."
            )
        parts = [np.asarray(tensors.pop(name), np.float32) for name in names]
        return np.stack(parts) if place.stacked else parts[0]
    return None


Pair = tuple[np.ndarray, np.ndarray]


def _take_pairs(tensors: dict[str, np.ndarray], place: Place) -> list[Pair | None]:
    """Remove one projection's A and B from the tensors, layer by layer; None where it has none."""
    pairs: list[Pair | None] = []
    for name in place.names:
        a, b = (f"{PREFIX}{name}.lora_{side}.weight" for side in "AB")
        held = a in tensors and b in tensors
        pairs.append((tensors.pop(a), tensors.pop(b)) if held else None)
    return pairs


def _take_magnitudes(tensors: dict[str, np.ndarray], place: Place) -> np.ndarray:
    """Remove one projection's DoRA magnitudes: [L, out], zero in layers without them."""
    layers, out_features, _ = place.module.weight.get_value().shape
    stack = np.zeros((layers, out_features), np.float32)
    for layer, name in enumerate(place.names):
        held = tensors.pop(f"{PREFIX}{name}.{MAGNITUDE}", None)
        if held is None:
            continue
        if held.shape != (out_features,):
            raise IncompatibleCheckpointError(
                f"the magnitudes of `{name}` must be [{out_features}]; got {held.shape}. "
                "Check that the adapter was made for this base model."
            )
        stack[layer] = held
    return stack


def _stacks(
    config: AdapterConfig, place: Place, pairs: list[Pair | None]
) -> tuple[LoraSpec, np.ndarray, np.ndarray]:
    """One projection's ranks and scales, and its zero-padded A [L, R, in] and B [L, out, R]."""
    layers, out_features, in_features = place.module.weight.get_value().shape
    ranks = tuple(0 if pair is None else pair[0].shape[0] for pair in pairs)
    a = np.zeros((layers, max(ranks), in_features), np.float32)
    b = np.zeros((layers, out_features, max(ranks)), np.float32)
    for layer, (pair, rank) in enumerate(zip(pairs, ranks, strict=True)):
        if pair is None:
            continue
        if pair[0].shape != (rank, in_features) or pair[1].shape != (out_features, rank):
            raise IncompatibleCheckpointError(
                f"the adapter of `{place.names[layer]}` must be A [r, {in_features}] and "
                f"B [{out_features}, r]; got {pair[0].shape} and {pair[1].shape}. "
                "Check that the adapter was made for this base model."
            )
        a[layer, :rank], b[layer, :, :rank] = pair
    scales = tuple(_scale(config, *of) for of in zip(place.names, ranks, strict=True))
    spec = LoraSpec(
        ranks=ranks, scales=scales, dropout=config.lora_dropout, use_dora=config.use_dora
    )
    return spec, a, b


def _scale(config: AdapterConfig, module: str, rank: int) -> float:
    """The scale s of one layer's projection; 0 where it has no adapter."""
    scale = config.scale_for(module, rank) if rank else 0.0
    if scale is None:
        raise IncompatibleCheckpointError(
            f"the alpha of every adapted module must be plain to read; that of `{module}` hangs on "
            f"a regular expression in alpha_pattern: {dict(config.alpha_pattern)}. "
            "Write the modules' names out in adapter_config.json."
        )
    return scale
